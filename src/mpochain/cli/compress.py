"""``mpochain compress`` and ``mpochain plan``: a model made smaller, or what would become of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mpochain.cli.options import (
    Budget,
    CalibrationText,
    CalibrationWindows,
    Dtype,
    Ignore,
    Json,
    Method,
    RecipeFile,
    Seed,
    Sequential,
    Source,
    Targets,
    Window,
    command_line,
    print_json,
    quiet_transformers,
    share_or_size,
)
from mpochain.system.progress import counting, say

__all__ = ["compress", "plan"]


def plan(
    model: Source = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    method: Method = None,
    sequential: Sequential = None,
    calibration: CalibrationText = None,
    calibration_windows: CalibrationWindows = None,
    window: Window = None,
    target: Targets = None,
    ignore: Ignore = None,
    dtype: Dtype = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Print what would become of each layer, and change nothing."""
    flags = _flags(model, budget, method, sequential, calibration, calibration_windows, target, ignore, dtype, seed)
    _dry_run(recipe, flags, window, as_json)


def compress(
    model: Source = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the smaller model and its report.")] = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    method: Method = None,
    sequential: Sequential = None,
    calibration: CalibrationText = None,
    calibration_windows: CalibrationWindows = None,
    window: Window = None,
    target: Targets = None,
    ignore: Ignore = None,
    dtype: Dtype = None,
    seed: Seed = None,
    evaluate: Annotated[Path | None, typer.Option(help="Text to measure perplexity on, before and after.")] = None,
    evaluate_windows: Annotated[int | None, typer.Option(help="Windows of it; all if not given.")] = None,
    speed: Annotated[bool, typer.Option(help="Whether to time both models beside each other.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would become of each layer.")] = False,
    as_json: Json = False,
) -> None:
    """Make a language model smaller; write it, report.html and report.json into a folder."""
    from mpochain.checkpoint import require_replaceable
    from mpochain.errors import OutputError, RecipeError
    from mpochain.language import save_language_model
    from mpochain.report.figures import require_matplotlib
    from mpochain.workflows import compress_by, read_recipe
    from mpochain.workflows.report_page import write_report

    flags = _flags(model, budget, method, sequential, calibration, calibration_windows, target, ignore, dtype, seed)
    flags["evaluation"] = {
        "text": None if evaluate is None else str(evaluate),
        "windows": evaluate_windows,
    }
    if dry_run:
        _dry_run(recipe, flags, window, as_json)
        return
    wanted = read_recipe(recipe, flags, window=window)
    if out is None:
        raise RecipeError("say where to write the smaller model: --out FOLDER")
    if Path(wanted.model).exists() and out.exists() and out.resolve() == Path(wanted.model).resolve():
        raise OutputError(f"{out} holds the model itself; name another folder")
    require_replaceable(out)
    require_matplotlib()
    with quiet_transformers(), counting() as counter:
        outcome = compress_by(wanted, timed=speed, log=say, counter=counter)
    save_language_model(outcome.language, out)
    files = write_report(out, outcome, command_line(), wanted.model_dump(mode="json", exclude_none=True))
    if as_json:
        print_json({"folder": str(out), **outcome.as_dict()})
        return
    print(outcome.report.table())
    if outcome.before is not None and outcome.after is not None:
        print(f"perplexity: {outcome.before.perplexity:.2f} before, {outcome.after.perplexity:.2f} after")
    if outcome.speed is not None:
        dense, small = outcome.speed["dense"], outcome.speed["compressed"]
        print(
            f"time of the whole model, compressed / dense: {small.prefill / dense.prefill:.2f} for a prompt of "
            f"{dense.prompt} tokens, {small.decode / dense.decode:.2f} for one token after it"
        )
    for file in (out, *files):
        print(file)
    if wanted.healing is not None and recipe is not None:
        say(
            f"not healed yet: mpochain finetune {out} --recipe {recipe} --out FOLDER does what its section healing says"
        )


def _flags(
    model: str | None,
    budget: str | None,
    method: str | None,
    sequential: bool | None,
    calibration: Path | None,
    calibration_windows: int | None,
    target: list[str] | None,
    ignore: list[str] | None,
    dtype: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """The options that were given, nested as in a recipe."""
    return {
        "model": model,
        "budget": share_or_size(budget),
        "method": method,
        "sequential": sequential,
        "targets": tuple(target) if target else None,
        "ignore": tuple(ignore) if ignore else None,
        "dtype": dtype,
        "seed": seed,
        "calibration": {
            "text": None if calibration is None else str(calibration),
            "windows": calibration_windows,
        },
    }


def _dry_run(recipe: Path | None, flags: Mapping[str, Any], window: int | None, as_json: bool) -> None:
    from mpochain.workflows import compress_by, read_recipe

    wanted = read_recipe(recipe, flags, window=window)
    with quiet_transformers():
        report = compress_by(wanted, dry_run=True, log=say).report
    if as_json:
        print_json(report.as_dict())
    else:
        print(report.table())
