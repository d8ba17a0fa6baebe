"""Comparison of compression methods at several budgets on one model, one process per run."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from mpochain.compression import Refinement, method_named
from mpochain.errors import CheckpointError, MPOError, RecipeError
from mpochain.execution import predicted_plans
from mpochain.language import LanguageModel, generate, save_language_model
from mpochain.language.text import ENOUGH_WINDOWS
from mpochain.report import provenance
from mpochain.system.extensions import import_extensions, imported_extensions
from mpochain.system.files import require_writable
from mpochain.system.locks import locked
from mpochain.system.memory import peak_resident
from mpochain.workflows.checks import require_inputs
from mpochain.workflows.comparison_records import FORMAT, read_run
from mpochain.workflows.compressing import compress_by
from mpochain.workflows.finetuning import finetune_by
from mpochain.workflows.former_names import existing_file, existing_folder
from mpochain.workflows.inputs import ENOUGH_CALIBRATION, read_inputs
from mpochain.workflows.json_file import write_json
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.sections import Comparison, method_and_options
from mpochain.workflows.texts import identified

__all__ = ["FINETUNED", "compare", "comparison_of", "run_names"]

logger = logging.getLogger(__name__)

# Suffix of a run that finetunes the result of another run.
FINETUNED = "-finetuned"


def comparison_of(recipe: Recipe) -> Comparison:
    """Return the comparison of a recipe; one without this section compares the default methods at its budget.

    Example:
        >>> comparison_of(Recipe(model="gpt2", budget=0.7)).budgets
        (0.7,)
    """
    if recipe.comparison is not None:
        return recipe.comparison
    return Comparison() if recipe.budget is None else Comparison(budgets=(recipe.budget,))


def run_names(recipe: Recipe) -> list[str]:
    """Return the names of all runs of a comparison, in order of execution.

    Raises:
        RecipeError: the recipe lacks a text for evaluation, for calibration or for runs that are finetuned.

    Example:
        >>> from mpochain.workflows.sections import Comparison, Evaluation
        >>> comparison = Comparison(methods=("svd", "tt_svd"), budgets=(0.5,))
        >>> run_names(Recipe(model="gpt2", evaluation=Evaluation(text=Path("a.txt")), comparison=comparison))
        ['dense', 'svd-0.5', 'tt_svd-0.5']
    """
    comparison = comparison_of(recipe)
    if recipe.evaluation is None:
        raise RecipeError("a comparison needs the section evaluation in its recipe, with a text to measure on")
    for method in comparison.methods:
        plain, options = method_and_options(method)
        if (method_named(plain).needs != "nothing" or options) and recipe.calibration is None:
            raise RecipeError(f"method {method} needs calibration data; name a text in the section calibration")
        if "stages" in options and not recipe.stage_budgets:
            raise RecipeError(f"method {method} needs budgets of earlier stages; give them as stage_budgets: [0.9]")
    if comparison.finetune and recipe.finetune is None:
        raise RecipeError("comparison.finetune needs the section finetune with a training text")
    names = ["dense"]
    for budget in comparison.budgets:
        names += [f"{method}-{budget}" for method in comparison.methods]
        names += [f"{method}-{budget}{FINETUNED}" for method in comparison.finetune]
    return names


def compare(recipe: Recipe, out: Path, *, only: Callable[[str], bool] = lambda _: True) -> None:
    """Execute every run of a comparison that is not finished yet.

    Args:
        recipe: recipe with the sections comparison and evaluation.
        out: folder for one JSON file per run and one folder per compressed model.
        only: predicate that selects runs by name.

    Raises:
        RecipeError: see :func:`run_names`; or the evaluation text is also used for calibration or finetuning.
        CheckpointError: the record of a run is damaged, or belongs to another recipe.
        OutputError: the folder is not writable, or another process makes one of the runs.
        MPOError: a step fails.
    """
    names = run_names(recipe)
    _log_unused(recipe)
    teacher = recipe.finetune.teacher if recipe.finetune is not None else None
    require_inputs(recipe, ("calibration", "evaluation", "finetune"), teacher=teacher)
    require_writable(out)
    for number, name in enumerate(names, 1):
        setting = _setting(recipe, name)
        file = existing_file(out, f"{name}.json")
        if file.exists():
            if read_run(file)["setting"] != setting:
                raise CheckpointError(f"{file} belongs to another recipe; remove it, or name another folder")
            continue
        if not only(name):
            continue
        logger.info("%d/%d: %s", number, len(names), name)
        # Two processes may share the runs of a comparison, but not one run.
        with locked(out / f".{name}.mpochain-lock", f"the run {name} in {out}"):
            # Each run has its own process, so that its peak memory is measured separately.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(
                1, mp_context=context, initializer=import_extensions, initargs=(imported_extensions(),)
            ) as pool:
                try:
                    result = pool.submit(_run, recipe, name, out).result()
                except BrokenProcessPool as error:
                    raise MPOError(f"the run {name} was killed, perhaps because memory ran out") from error
            write_json(file, {"format": FORMAT, "name": name, "setting": setting, **result})


def _log_unused(recipe: Recipe) -> None:
    """Name the fields that a comparison does not use, so that nobody waits for their effect."""
    options = frozenset[str]().union(*(method_and_options(method)[1] for method in comparison_of(recipe).methods))
    unused = {"method", "settings", "sequential", "stream", "speed", "stages"}
    unused |= {"budget"} if recipe.comparison is not None else set()
    unused |= {"refine"} if "refined" not in options else set()
    unused |= {"stage_budgets"} if "stages" not in options else set()
    for name in sorted(recipe.model_fields_set & unused):
        logger.info("a comparison does not use %s of the recipe; see its section comparison", name)


def _setting(recipe: Recipe, name: str) -> dict[str, Any]:
    """Settings that determine a run's result: the recipe without other runs, with texts identified by content."""
    setting = recipe.model_dump(
        mode="json",
        exclude={
            "device",
            "comparison",
            "budget",
            "method",
            "settings",
            "sequential",
            "refine",
            "stream",
            "speed",
            "stage_budgets",
        },
    )
    setting["model"] = Path(recipe.model).name
    if recipe.evaluation is not None and recipe.evaluation.windows is None:
        setting["evaluation"]["windows"] = f"at most {ENOUGH_WINDOWS}"
    if recipe.calibration is not None and recipe.calibration.windows is None:
        setting["calibration"]["windows"] = ENOUGH_CALIBRATION
    if recipe.evaluation is not None:
        also = [identified(text) for text in recipe.evaluation.also]
        # Records from before there were further texts have no such field.
        setting["evaluation"] |= {"also": also}
        if not also:
            del setting["evaluation"]["also"]
    for section in ("calibration", "evaluation", "finetune"):
        if setting.get(section) is not None:
            setting[section]["text"] = identified(getattr(recipe, section).text)
            if setting[section].get("teacher") is not None:
                setting[section]["teacher"] = Path(setting[section]["teacher"]).name
    if not name.endswith(FINETUNED):
        setting["finetune"] = None
    _, options = method_and_options(name.removesuffix(FINETUNED).rpartition("-")[0])
    if "refined" in options:
        setting["refine"] = (Refinement() if isinstance(recipe.refine, bool) else recipe.refine).model_dump(mode="json")
    if "stages" in options:
        setting["stage_budgets"] = [str(budget) for budget in recipe.stage_budgets]
    return setting


@predicted_plans()
def _run(recipe: Recipe, name: str, out: Path) -> dict[str, Any]:
    """Execute one run, in its own process."""
    # Provenance is read at the start, because the program's files may change while it runs.
    source = {"provenance": provenance(threads=torch.get_num_threads(), commit=True)}
    if name == "dense":
        result = _dense(recipe)
    elif name.endswith(FINETUNED):
        result = _finetuned(recipe, name, out)
    else:
        result = _compressed(recipe, name, out)
    return result | source


def _dense(recipe: Recipe) -> dict[str, Any]:
    inputs = read_inputs(recipe, "evaluation")
    model = inputs.language.model
    perplexity = inputs.perplexity(model, "dense")
    assert perplexity is not None  # run_names asks for an evaluation
    also = inputs.perplexities_of_also(model, "dense")
    return {
        "perplexity": perplexity.as_dict(),
        "also": {name: value.as_dict() for name, value in also.items()},
        "texts": _texts(recipe, inputs.language),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": 0.0,
        "peak_bytes": peak_resident(),
    }


def _finetuned(recipe: Recipe, name: str, out: Path) -> dict[str, Any]:
    # An interrupted run may be in a folder with its former name.
    finetuned = finetune_by(
        recipe, out / name.removesuffix(FINETUNED), existing_folder(out, name), evaluated="after", overwrite=True
    )
    record = finetuned.as_dict()
    return {
        "perplexity": record["perplexity"]["after"],
        "also": {name: both["after"] for name, both in record["perplexity"]["also"].items()},
        "texts": _texts(recipe, finetuned.language),
        "training": record["training"],
        "seconds": finetuned.result.seconds,
        "peak_bytes": finetuned.peak_bytes,
    }


def _compressed(recipe: Recipe, name: str, out: Path) -> dict[str, Any]:
    method, _, label = name.rpartition("-")
    plain, options = method_and_options(method)
    single = recipe.model_copy(
        update={
            "method": plain,
            "settings": {},
            "budget": next(budget for budget in comparison_of(recipe).budgets if str(budget) == label),
            "speed": None,
            "sequential": "sequential" in options,
            "refine": "refined" in options and (recipe.refine or True),
            "stage_budgets": recipe.stage_budgets if "stages" in options else (),
        }
    )
    compressed = compress_by(single, evaluated="after", timed=True)
    save_language_model(compressed.language, out / name)
    report, speed = compressed.report, compressed.speed
    assert compressed.after is not None  # run_names asks for an evaluation
    return {
        "perplexity": compressed.after.as_dict(),
        "also": {name: after.as_dict() for name, (_, after) in compressed.also.items()},
        "texts": _texts(recipe, compressed.language),
        "parameters": compressed.parameters[1],
        "layers": {
            "parameters_before": report.parameters_before,
            "parameters_after": report.parameters_after,
            "bytes_before": sum(layer.bytes_before for layer in report.layers),
            "bytes_after": sum(layer.bytes_after for layer in report.layers),
            "macs_before": sum(layer.macs_before for layer in report.layers),
            "macs_after": sum(layer.macs_after for layer in report.layers),
            "output_errors": [layer.output_error for layer in report.layers],
            "dense": sum(layer.form == "dense" for layer in report.layers),
        },
        "frontier": report.frontier,
        "speed": {model: times.as_dict() for model, times in speed.items()} if speed is not None else None,
        "seconds": report.seconds,
        "peak_bytes": compressed.peak_bytes,
    }


def _texts(recipe: Recipe, language: LanguageModel) -> list[str]:
    """Texts that a model generates from the recipe's prompts, in their order."""
    return generate(language.model, language.tokenizer, recipe.prompts) if recipe.prompts else []
