"""``mpochain cut``: a compressed model of any size, from the fits of ``mpochain compress --any-size``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.compress import compress_and_tell
from mpochain.cli.options import (
    Budget,
    Device,
    EvaluationText,
    EvaluationWindows,
    FurtherTexts,
    Ignore,
    Json,
    Overwrite,
    Prompts,
    SpeedShare,
    Targets,
    Window,
    count_or_all,
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
    timed: Annotated[
        bool, typer.Option("--time/--no-time", " /--no-speed", help="Time the dense and the compressed model.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the predicted result for each layer; write nothing.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show a row for every layer, and details in the log.")
    ] = False,
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
            "evaluation": {
                "text": None if evaluate is None else str(evaluate),
                "windows": count_or_all(evaluate_windows),
                "also": tuple(map(str, also)) if also else None,
            },
        },
        window=window,
    )
    compress_and_tell(
        settings, out, timed=timed, dry_run=dry_run, verbose=verbose, overwrite=overwrite, as_json=as_json
    )
