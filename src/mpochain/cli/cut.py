"""``mpochain cut``: a compressed model of any size, from the fits of ``mpochain compress --any-size``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.compress import compress_and_tell
from mpochain.cli.options import (
    Budget,
    Device,
    DryRun,
    EvaluationText,
    EvaluationWindows,
    FurtherTexts,
    Ignore,
    Json,
    Overwrite,
    Prompts,
    SpeedShare,
    Targets,
    Timed,
    Verbose,
    Window,
    evaluation_section,
    share_or_size,
)

__all__ = ["cut"]


def cut(
    folder: Annotated[Path, typer.Argument(help="Folder that mpochain compress --any-size wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the compressed model and its report.")] = None,
    budget: Budget = None,
    speed: SpeedShare = None,
    target: Targets = None,
    ignore: Ignore = None,
    device: Device = None,
    window: Window = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    also: FurtherTexts = None,
    prompt: Prompts = None,
    timed: Timed = True,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compress a model to any budget in seconds and without data, from fits that were made once."""
    from mpochain.workflows import read_recipe
    from mpochain.workflows.any_size import METHOD, fits_in

    settings = read_recipe(
        None,
        {
            "model": str(folder),
            "budget": share_or_size(budget),
            "speed": share_or_size(speed),
            "method": METHOD,
            "settings": {"folder": str(fits_in(folder))},
            "targets": tuple(target) if target else None,
            "ignore": tuple(ignore) if ignore else None,
            "prompts": tuple(prompt) if prompt else None,
            "device": device,
            "evaluation": evaluation_section(evaluate, evaluate_windows, also),
        },
        window=window,
    )
    compress_and_tell(
        settings, out, timed=timed, dry_run=dry_run, verbose=verbose, overwrite=overwrite, as_json=as_json
    )
