"""Several methods at several budgets on one model, each in a process of its own; what finished is never run again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from mpochain.compression import method_named
from mpochain.errors import ArgumentError, CheckpointError, MPOError, RecipeError
from mpochain.language import load_language_model, read_tokens, save_language_model
from mpochain.report import provenance
from mpochain.system.files import require_writable, write_bytes
from mpochain.system.memory import peak_resident
from mpochain.workflows.compressing import Log, compress_by, evaluate
from mpochain.workflows.healing import heal_by
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import digest, require_unseen

__all__ = ["FORMAT", "cells", "compare", "read_cell"]

FORMAT = 1
_SEQUENTIAL = "+sequential"


def cells(recipe: Recipe) -> list[str]:
    """The names of all runs of a comparison, in the order they are made.

    Raises:
        RecipeError: no comparison or evaluation in the recipe, or a method that there is not.
    """
    if recipe.comparison is None or recipe.evaluation is None:
        raise RecipeError("a comparison needs the sections comparison and evaluation in its recipe")
    wanted = recipe.comparison
    for method in (*wanted.methods, *wanted.heal):
        try:
            method_named(method.removesuffix(_SEQUENTIAL))
        except ArgumentError as error:
            raise RecipeError(f"comparison: {error}") from error
    unknown = set(wanted.heal) - set(wanted.methods)
    if unknown:
        raise RecipeError(f"comparison.heal: {sorted(unknown)[0]!r} is not among comparison.methods")
    if wanted.heal and recipe.healing is None:
        raise RecipeError("comparison.heal needs the section healing")
    names = ["dense"]
    for budget in wanted.budgets:
        names += [f"{method}-{budget}" for method in wanted.methods]
        names += [f"{method}-{budget}-healed" for method in wanted.heal]
    return names


def compare(recipe: Recipe, out: Path, *, only: Callable[[str], bool] = lambda _: True, log: Log = print) -> None:
    """Make every run of a comparison that is not there yet.

    Args:
        recipe: with the sections comparison and evaluation.
        out: a JSON file for each run, and a folder for each smaller model.
        only: which runs to make, by their names.
        log: told what is done.

    Raises:
        RecipeError: see :func:`cells`; or an evaluation on what the models have seen.
        CheckpointError: a run in the folder is damaged, or of another recipe.
        OutputError: the folder cannot be written.
        MPOError: whatever a step raises.
    """
    names = cells(recipe)
    require_unseen(recipe)
    require_writable(out)
    for number, name in enumerate(names, 1):
        setting = _setting(recipe, name)
        file = out / f"{name}.json"
        if file.exists():
            if read_cell(file)["setting"] != setting:
                raise CheckpointError(f"{file} is of another recipe; remove it, or name another folder")
            continue
        if not only(name):
            continue
        log(f"{number}/{len(names)}: {name}")
        # A process for each, so that the memory of one is not that of another.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                result = pool.submit(_run, recipe, name, out).result()
            except BrokenProcessPool as error:
                raise MPOError(f"the run {name} was killed, perhaps for want of memory") from error
        record = {"format": FORMAT, "name": name, "setting": setting, **result}
        write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def read_cell(file: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and run the comparison again") from error
    fields = {"name", "setting", "perplexity", "provenance", "peak_bytes", "seconds"}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not fields <= set(found):
        raise CheckpointError(f"{file} is damaged or of another format; remove it and run the comparison again")
    return found


def _setting(recipe: Recipe, name: str) -> dict[str, Any]:
    """What decides a run: the recipe without the other runs, texts by what they hold and not where they are."""
    kept = recipe.model_dump(mode="json", exclude={"comparison", "budget", "method", "sequential"})
    kept["model"] = Path(recipe.model).name
    for part in ("calibration", "evaluation", "healing"):
        if kept.get(part) is not None:
            text = Path(kept[part]["text"])
            kept[part]["text"] = f"{text.name}, sha256 {digest(text)[:16]}"
            if kept[part].get("teacher") is not None:
                kept[part]["teacher"] = Path(kept[part]["teacher"]).name
    if not name.endswith("-healed"):
        kept["healing"] = None
    return kept


def _run(recipe: Recipe, name: str, out: Path) -> dict[str, Any]:
    """One run, in its own process."""
    assert recipe.evaluation is not None
    source = {"provenance": provenance(threads=torch.get_num_threads(), commit=True)}
    if name == "dense":
        language = load_language_model(recipe.model, dtype=recipe.dtype)
        tokens = read_tokens(recipe.evaluation.text, language.tokenizer)
        found = evaluate(language.model, tokens, recipe.evaluation).as_dict()
        parameters = sum(parameter.numel() for parameter in language.model.parameters())
        return {
            "perplexity": found,
            "parameters": parameters,
            "seconds": 0.0,
            "peak_bytes": peak_resident(),
            **source,
        }
    if name.endswith("-healed"):
        healed = heal_by(recipe, out / name.removesuffix("-healed"), out / name, evaluated="after")
        assert healed.after is not None
        found = healed.as_dict()
        return {
            "perplexity": found["perplexity"]["after"],
            "training": found["training"],
            "seconds": healed.result.seconds,
            "peak_bytes": healed.peak_bytes,
            **source,
        }
    method, _, budget = name.rpartition("-")
    assert recipe.comparison is not None
    wanted = next(each for each in recipe.comparison.budgets if str(each) == budget)
    sequential = method.endswith(_SEQUENTIAL)
    single = recipe.model_copy(
        update={"method": method.removesuffix(_SEQUENTIAL), "budget": wanted, "sequential": sequential}
    )
    made = compress_by(single, evaluated="after", timed=True)
    save_language_model(made.language, out / name)
    assert made.after is not None
    report = made.report
    return {
        "perplexity": made.after.as_dict(),
        "parameters": made.parameters[1],
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
        "speed": {key: each.as_dict() for key, each in made.speed.items()} if made.speed is not None else None,
        "seconds": report.seconds,
        "peak_bytes": made.peak_bytes,
        **source,
    }
