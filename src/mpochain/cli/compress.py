"""``mpochain compress``: compression of a language model, or a preview of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpochain.cli.options import (
    Budget,
    CalibrationText,
    CalibrationWindows,
    Device,
    DryRun,
    Dtype,
    EvaluationText,
    EvaluationWindows,
    FurtherTexts,
    Ignore,
    Json,
    Method,
    Overwrite,
    Prompts,
    RecipeFile,
    Refine,
    Seed,
    Sequential,
    Setting,
    Source,
    SpeedShare,
    Stages,
    Stream,
    Targets,
    Timed,
    Verbose,
    Window,
    command_line,
    evaluation_section,
    print_json,
    quiet_transformers,
    settings_of,
    share_or_size,
    shares_or_sizes,
)
from mpochain.cli.outcome import outcome
from mpochain.cli.terminal import width
from mpochain.errors import printable
from mpochain.system.progress import counting

if TYPE_CHECKING:
    from mpochain.workflows import Recipe

__all__ = ["compress", "compress_and_tell"]

logger = logging.getLogger(__name__)


def compress(
    model: Source = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the compressed model and its report.")] = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    speed: SpeedShare = None,
    method: Method = None,
    setting: Setting = None,
    sequential: Sequential = None,
    stages: Stages = None,
    refine: Refine = None,
    stream: Stream = None,
    calibration: CalibrationText = None,
    calibration_windows: CalibrationWindows = None,
    window: Window = None,
    target: Targets = None,
    ignore: Ignore = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    also: FurtherTexts = None,
    prompt: Prompts = None,
    timed: Timed = True,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    any_size: Annotated[
        bool,
        typer.Option(
            "--any-size", help="Fit every layer for all sizes and write the fits beside the model, for mpochain cut."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compress a language model and write it to a folder with report.html and report.json.

    The model is written as soon as it is compressed; it is evaluated and timed afterwards. After Ctrl-C or a kill, the
    same command resumes.
    """
    from mpochain.workflows import read_recipe

    settings = read_recipe(
        recipe,
        {
            "model": model,
            "budget": share_or_size(budget),
            "speed": share_or_size(speed),
            "method": method,
            "settings": settings_of(setting),
            "sequential": sequential,
            "stage_budgets": shares_or_sizes(stages),
            "refine": refine,
            "stream": stream,
            "targets": tuple(target) if target else None,
            "ignore": tuple(ignore) if ignore else None,
            "prompts": tuple(prompt) if prompt else None,
            "dtype": dtype,
            "device": device,
            "seed": seed,
            "calibration": {
                "text": None if calibration is None else str(calibration),
                "windows": calibration_windows,
            },
            "evaluation": evaluation_section(evaluate, evaluate_windows, also),
        },
        window=window,
    )
    if any_size:
        _fit(settings, out, dry_run=dry_run, overwrite=overwrite, as_json=as_json)
        return
    compress_and_tell(
        settings, out, timed=timed, dry_run=dry_run, verbose=verbose, overwrite=overwrite, as_json=as_json
    )
    if settings.finetune is not None and recipe is not None and not dry_run and not as_json:
        logger.info("to finetune it by the recipe: mpochain finetune %s --recipe %s --out FOLDER", out, recipe)


def compress_and_tell(
    settings: Recipe,
    out: Path | None,
    *,
    timed: bool,
    dry_run: bool,
    verbose: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Compress by a recipe, or preview it, and print the outcome."""
    from mpochain.workflows import compress_by
    from mpochain.workflows.compressing import UNFINISHED

    if dry_run:
        _preview(settings, as_json, verbose)
        return
    out = _require_output(settings, out)
    with quiet_transformers(), counting() as counters:
        try:
            result = compress_by(
                settings, out, timed=timed, command=command_line(), overwrite=overwrite, counters=counters
            )
        except KeyboardInterrupt:
            logger.info(
                "interrupted; what is finished is kept in %s, and the same command goes on from it", out / UNFINISHED
            )
            raise typer.Exit(130) from None
    if as_json:
        print_json({"folder": str(out), **result.as_dict()})
        return
    print(printable(outcome(result, width())))
    if verbose:
        print(f"\n{result.report.table(width())}")
    for text in result.texts:
        print(printable(f"\nprompt: {text.prompt}\n  dense: {text.dense}\n  compressed: {text.compressed}"))
    print()
    for file in (out, out / "report.json", out / "report.html"):
        print(file)


def _fit(settings: Recipe, out: Path | None, *, dry_run: bool, overwrite: bool, as_json: bool) -> None:
    """Write the fits of all layers beside the dense model."""
    from mpochain.errors import RecipeError
    from mpochain.system.sizes import megabytes
    from mpochain.workflows.any_size import fit_by

    if dry_run:
        raise RecipeError("--any-size writes fits, and --dry-run nothing; give one of them")
    if out is None:
        raise RecipeError("the folder for the model and its fits is missing; give --out FOLDER")
    with quiet_transformers(), counting() as counters:
        fitted = fit_by(settings, out, overwrite=overwrite, counters=counters)
    if as_json:
        print_json(fitted.as_dict())
        return
    print(f"{fitted.layers} layers fitted for every size, in {megabytes(fitted.bytes)}")
    print(out)
    logger.info("to make a model of any size of it: mpochain cut %s --budget 0.7 --out FOLDER", out)


def _preview(settings: Recipe, as_json: bool, verbose: bool) -> None:
    """Print the predicted result."""
    from mpochain.workflows import compress_by

    with quiet_transformers(), counting() as counters:
        report = compress_by(settings, dry_run=True, counters=counters).report
    if as_json:
        print_json(report.as_dict())
    else:
        print(report.table(width()) if verbose else report.summary(width()))


def _require_output(settings: Recipe, out: Path | None) -> Path:
    """Return the output folder after checking, before any work, that it is named and a report can be drawn."""
    from mpochain.errors import OutputError, RecipeError
    from mpochain.report.figures import require_matplotlib

    if out is None:
        raise RecipeError("the folder for the compressed model is missing; give --out FOLDER")
    if Path(settings.model).exists() and out.exists() and out.resolve() == Path(settings.model).resolve():
        raise OutputError(f"--out {out} is the folder of the dense model; name another folder")
    require_matplotlib()
    return out
