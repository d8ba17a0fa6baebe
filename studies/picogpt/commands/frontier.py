"""Command ``frontier``: the trained dense model compressed to many sizes by several methods."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["RECORDS", "frontier"]

RECORDS = Path(__file__).parents[1] / "frontier"
"""Folder of the committed records."""

_SEED = 0
_BATCH = 16


def frontier(
    out: Annotated[Path, typer.Option(help="Folder for the records; finished points in it are kept.")] = RECORDS,
    corpus: Annotated[Path | None, typer.Option(help="Text file; the README lists the defaults.")] = None,
    calibration_windows: Annotated[
        int, typer.Option(help="Windows of 256 characters of the training split.", min=1)
    ] = 256,
) -> None:
    """Measure perplexity against size. After an interruption, the same command resumes.

    The page is written by ``mpochain frontier --page-only --out FOLDER --page PAGE.md``.
    """
    import torch

    from mpochain.errors import CheckpointError
    from mpochain.language import perplexity
    from mpochain.system.files import require_writable
    from mpochain.workflows.frontier_records import is_measured, locked_frontier, measure_points
    from studies import picogpt
    from studies.frontier_points import points

    text = picogpt.load_corpus(corpus)
    print(f"corpus: {text}", file=sys.stderr)
    file = picogpt.shipped(text)
    if file is None:
        raise CheckpointError(f"no trained model of this corpus ({text.name}) is stored; give Tiny Shakespeare")
    model, _ = picogpt.load_weights(file)
    window = model.context
    text.require_context(window)
    count = min(calibration_windows, len(text.train) // window)
    starts = [number * (len(text.train) - window) // count for number in range(count)]
    calibration = torch.stack([text.train[start : start + window] for start in starts]).long()
    edition = f"{text.name}, sha256 {text.sha256[:16]}"
    setting = {
        "model": f"PicoGPT {file.stem}",
        "dtype": "float32",
        "seed": _SEED,
        "calibration": {"text": f"{edition}, first nine tenths", "windows": count, "window": window},
        "evaluation": {"text": f"{edition}, last tenth", "window": window},
        "others": [],
    }
    require_writable(out)

    def measured(name: str) -> dict[str, object]:
        result = perplexity(model, text.validation.long(), window=window)
        logging.getLogger(__name__).info("%s: perplexity %.4f", name, result.perplexity)
        return {"validation": result.as_dict()}

    with locked_frontier(out):
        if not is_measured(out, points(), setting):
            measure_points(model, points(), out, setting, measured, calibration=calibration.split(_BATCH), seed=_SEED)
    print(out)
