"""Recipe-driven compression of a language model: saved as soon as it is compressed, measured afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mpochain.checkpoint.card import write_card
from mpochain.compression import compress, open_state, require_possible
from mpochain.compression.budget import bytes_in_memory
from mpochain.distributed import team_of_group
from mpochain.errors import MPOError, RecipeError
from mpochain.execution import predicted_plans
from mpochain.language import Speed
from mpochain.report import provenance
from mpochain.system.folders import replaced_together
from mpochain.system.memory import freed_memory_returned, peak_resident
from mpochain.system.progress import Counters, uncounted
from mpochain.workflows.compressed import Compressed, GeneratedText
from mpochain.workflows.counted_windows import CountedWindows
from mpochain.workflows.inputs import Section, read_inputs, read_model
from mpochain.workflows.measured import Measured
from mpochain.workflows.measurements import Measurements
from mpochain.workflows.model_card import tell_of_compression
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.report_page import write_report
from mpochain.workflows.result_folder import result_folder, save_result
from mpochain.workflows.sizes import bytes_of_weights, warn_of_growth
from mpochain.workflows.streaming import largest_file, memory_of
from mpochain.workflows.timing import time_models

__all__ = ["UNFINISHED", "compress_by"]

logger = logging.getLogger(__name__)

# Subfolder of the output with the state of an unfinished run.
UNFINISHED = "unfinished"
Value = TypeVar("Value")


@predicted_plans()
def compress_by(
    recipe: Recipe,
    out: Path | None = None,
    *,
    dry_run: bool = False,
    evaluated: Literal["both", "after"] = "both",
    timed: bool = False,
    command: str = "",
    overwrite: bool = False,
    counters: Counters = uncounted,
) -> Compressed:
    """Compress the model of a recipe and measure it, before and after.

    With ``out``, the model is written as soon as it is compressed, with a report; figures that are measured afterwards
    are added to the report. After an interruption, the same call goes on from the last finished part.

    Args:
        recipe: recipe with a budget, unless the settings of its method leave no choice.
        out: folder for the compressed model, ``report.json`` and ``report.html``; it also holds the state of an
            unfinished run. None to write nothing.
        dry_run: only report the predicted result for each layer, without evaluation and timing; writes nothing.
        evaluated: ``"both"`` to evaluate the dense model too.
        timed: time the dense and the compressed model, in turn. If a model cannot be timed, the result says why.
        command: command that reproduces the result, for the report.
        overwrite: whether a finished model in ``out``, or the unfinished state of another run, is replaced.
        counters: returns the progress counter for a label: an evaluation, a pass over the calibration data, or the
            texts of a model.

    Raises:
        RecipeError: the budget is missing, a required calibration text is missing, the evaluation text is also used
            for calibration or finetuning, or ``out`` is the folder of the dense model.
        CheckpointError: the model cannot be read, or ``out`` holds the state of another run.
        OutputError: ``out`` holds a finished model or cannot be written, or another process writes to it.
        MPOError: a step fails. If the compressed model cannot be evaluated, it is saved nevertheless.
    """
    method = recipe.chosen_method()
    if recipe.budget is None and recipe.speed is None and not method.settled:
        raise RecipeError(
            "the budget is missing; give the share or size to keep, such as 0.6, '60%' or '200MB' (on the command line "
            "--budget)"
        )
    if recipe.calibration is None and (method.needs != "nothing" or recipe.refine):
        what = f"method {method.name}" if method.needs != "nothing" else "refine"
        raise RecipeError(
            f"{what} needs calibration data; name a text typical of the model's use in the section "
            "calibration (on the command line --calibration)"
        )
    folder = None if dry_run else out
    team = team_of_group()
    with memory_of(recipe, folder), ExitStack() as held:
        if folder is not None:
            with team.together():
                if team.is_first:
                    _require_other_folder(recipe, folder)
                    held.enter_context(result_folder(folder, overwrite=overwrite, unfinished=(UNFINISHED,)))
        if not team.is_first:
            return _followed(recipe, folder, dry_run=dry_run)
        return _compress(
            recipe,
            folder,
            dry_run=dry_run,
            evaluated=evaluated,
            timed=timed,
            command=command if folder is not None else "",
            overwrite=overwrite,
            counters=counters,
        )


def _followed(recipe: Recipe, out: Path | None, *, dry_run: bool) -> Compressed:
    """The compression in a process that shares the work of the first one, which measures and writes the result."""
    with team_of_group().together():
        inputs = read_inputs(recipe, "calibration")
    model = inputs.language.model
    parameters, size = _parameters(model), bytes_in_memory(model)
    report = compress(
        model,
        recipe.budget,
        calibration=inputs.calibration,
        held_out=inputs.held_out or None,
        dry_run=dry_run,
        checkpoint=None if out is None else out / UNFINISHED,
        share=True,
        stream=recipe.stream,
        **_arguments(recipe),
    )
    return Compressed(
        language=inputs.language,
        report=report,
        parameters=(parameters, _parameters(model)),
        before=None,
        after=None,
        speed=None,
        peak_bytes=peak_resident(),
        model_bytes=(size, bytes_in_memory(model)),
        windows=None,
    )


def _arguments(recipe: Recipe) -> dict[str, Any]:
    """Arguments of a compression besides the model, the budget and the data."""
    return {
        "targets": recipe.targets,
        "ignore": recipe.ignore,
        "method": recipe.chosen_method(),
        "sequential": recipe.sequential,
        "refine": recipe.refine,
        "speed": recipe.speed,
        "stages": recipe.stage_budgets,
        "seed": recipe.seed,
    }


def _compress(
    recipe: Recipe,
    out: Path | None,
    *,
    dry_run: bool,
    evaluated: Literal["both", "after"],
    timed: bool,
    command: str,
    counters: Counters,
    overwrite: bool = False,
) -> Compressed:
    arguments = _arguments(recipe)
    possible = {name: value for name, value in arguments.items() if name != "seed"}
    sections: list[Section] = ["calibration"] if dry_run else ["calibration", "evaluation"]
    unfinished = None if out is None else out / UNFINISHED
    state = None
    try:
        with team_of_group().together():
            inputs = read_inputs(recipe, *sections)
            model = inputs.language.model
            warn_of_growth(recipe.model, model)
            require_possible(model, recipe.budget, **possible)  # before the evaluation of the dense model
            if unfinished is not None:
                # Another run is refused here, before the evaluation of the dense model.
                state = open_state(
                    unfinished,
                    model,
                    recipe.budget,
                    calibration=inputs.calibration,
                    replace_other=overwrite,
                    **arguments,
                )
            measurements = Measurements(unfinished)
            dense = Measured(inputs, measurements, "dense", counters)
            before = dense.perplexity(model) if evaluated == "both" else None
            also_before = dense.perplexities_of_also(model) if evaluated == "both" else {}
            asked = () if dry_run or evaluated == "after" else recipe.prompts
            dense_texts = dense.texts(model, asked)
            parameters, size = _parameters(model), bytes_in_memory(model)
        with freed_memory_returned():
            report = compress(
                model,
                recipe.budget,
                calibration=None if inputs.calibration is None else CountedWindows(inputs.calibration, counters),
                held_out=inputs.held_out or None,
                dry_run=dry_run,
                checkpoint=state,
                share=True,
                stream=recipe.stream,
                **arguments,
            )
    except BaseException:
        if state is not None:
            state.remove_if_empty()
        raise
    result = Compressed(
        language=inputs.language,
        # Published results name the commit; compress does not, because that would start git.
        report=replace(report, provenance=provenance(threads=torch.get_num_threads(), commit=True)),
        parameters=(parameters, _parameters(model)),
        before=before,
        after=None,
        speed=None,
        peak_bytes=peak_resident(),
        model_bytes=(size, bytes_in_memory(model)),
        windows=inputs.evaluation_windows(),
    )
    if dry_run:
        return result
    settings = recipe.model_dump(mode="json", exclude_none=True)
    if out is not None:
        before_bytes, compressed_result = bytes_of_weights(recipe.model), result

        def first_report(new: Path) -> None:
            sizes = before_bytes, bytes_of_weights(new)
            write_report(new, replace(compressed_result, file_bytes=sizes), command, settings)

        tell_of_compression(model, result, recipe, command)
        save_result(inputs.language, out, first_report, keep=(UNFINISHED,), largest_file=largest_file(recipe))
        result = replace(result, file_bytes=(before_bytes, bytes_of_weights(out)))
        logger.info("the compressed model is saved in %s; what follows adds figures to its report", out)
    failures: dict[str, Exception] = {}

    def attempt(what: str, measure: Callable[[], Value]) -> Value | None:
        try:
            return measure()
        except Exception as error:  # whatever it is, it must not lose the compressed model
            failures[what] = error
            logger.warning("no %s: %s", what, _reason(error))
            return None

    compressed = Measured(inputs, measurements, "compressed", counters)
    after = attempt("perplexity", lambda: compressed.perplexity(model))
    also = attempt("perplexity on further texts", lambda: compressed.perplexities_of_also(model)) or {}
    texts = attempt("generated text", lambda: compressed.texts(model, asked)) or []
    speed = None
    if timed and recipe.stream:
        logger.info("no speed: with stream, the weights are read from the disk when they are used")
    elif timed:
        speed = attempt("speed", lambda: _speed(recipe, model, counters))
    result = replace(
        result,
        after=after,
        also={name: (also_before.get(name), perplexity) for name, perplexity in also.items()},
        texts=tuple(map(GeneratedText, asked, dense_texts, texts)) if texts else (),
        speed=speed,
        problems={what: _reason(error) for what, error in failures.items()},
    )
    if out is not None:
        with replaced_together(out, outdated=lambda name: name == UNFINISHED) as new:
            write_report(new, result, command, settings)
            tell_of_compression(model, result, recipe, command)
            write_card(model, new, out)
    if "perplexity" in failures:
        place = "" if out is None else f"the compressed model is saved in {out}, but "
        raise MPOError(f"{place}its evaluation failed: {_reason(failures['perplexity'])}") from failures["perplexity"]
    return result


def _require_other_folder(recipe: Recipe, out: Path) -> None:
    if Path(recipe.model).exists() and out.exists() and out.resolve() == Path(recipe.model).resolve():
        raise RecipeError(f"{out} is the folder of the dense model; name another folder")


def _speed(recipe: Recipe, model: nn.Module, counters: Counters) -> dict[str, Speed]:
    dense = read_model(
        recipe.model, dtype=recipe.dtype, device=recipe.device, role="the dense model again, to time both"
    )
    return time_models({"dense": dense.model, "compressed": model}, dense, counters=counters)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else "no message"
    return first if isinstance(error, MPOError) else f"{type(error).__name__}: {first}"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
