"""Options that several commands share, and how they fit over a recipe."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Budget",
    "CalibrationText",
    "CalibrationWindows",
    "Dtype",
    "Ignore",
    "Json",
    "Method",
    "RecipeFile",
    "Seed",
    "Sequential",
    "Source",
    "Targets",
    "Window",
    "command_line",
    "print_json",
    "quiet_transformers",
    "share_or_size",
]

Source = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Folder, .gguf file, or name on the Hugging Face hub; or in the recipe."),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file; options override what it says.")]
Budget = Annotated[
    str | None,
    typer.Option(help="What may be left of the layers: 0.6 or 60% of their parameters, 200MB, or '5% error' of each."),
]
Method = Annotated[
    str | None,
    typer.Option(help="interpolative (the default), search, svd_llm, svd, tt_svd, kronecker or permuted_kronecker."),
]
Sequential = Annotated[
    bool | None, typer.Option(help="Whether later layers correct the errors of earlier ones; no if not given.")
]
CalibrationText = Annotated[Path | None, typer.Option("--calibration", help="Text like that the model is for.")]
CalibrationWindows = Annotated[int | None, typer.Option(help="Windows of it; 24 if not given.")]
Window = Annotated[int | None, typer.Option(help="Tokens of a window; 512 if not given.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Layer by name, re: pattern or class; give it again for more.")
]
Ignore = Annotated[list[str] | None, typer.Option(help="Layers to leave out, in the same way.")]
Dtype = Annotated[str | None, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Seed = Annotated[int | None, typer.Option(help="Of what is drawn; 0 if not given.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs in place of text.")]


def share_or_size(budget: str | None) -> float | str | None:
    """A budget as it is in a recipe: a bare number is a share."""
    if budget is None:
        return None
    try:
        return float(budget)
    except ValueError:
        return budget


def command_line() -> str:
    """What the user typed, to be typed again."""
    return shlex.join(["mpochain", *sys.argv[1:]])


def print_json(data: Any) -> None:
    """On stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bars and warnings of transformers, which are not this program's to print."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    try:
        from transformers.utils import logging as untyped
    except ImportError:
        yield
        return
    logging: Any = untyped
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
