"""Options that several commands share, and what commands print."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

__all__ = [
    "Budget",
    "CalibrationText",
    "CalibrationWindows",
    "Dtype",
    "EvaluationText",
    "EvaluationWindows",
    "Ignore",
    "Json",
    "Method",
    "Prompts",
    "RecipeFile",
    "Seed",
    "Sequential",
    "Setting",
    "Source",
    "Targets",
    "Window",
    "command_line",
    "print_json",
    "quiet_transformers",
    "settings_of",
    "share_or_size",
]

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Dense model: a folder, a .gguf file, or a name on the Hugging Face hub. By default the recipe's model.",
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file; options replace what it says.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Size that the layers may keep: a share of their parameters (0.6 or 60%), bytes (200MB), or the relative "
        "error that each layer may have ('5% error')."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Compression method; interpolative if not given. Also package.module:ClassName of a method of your own."
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method, with a value as in YAML; repeatable."),
]
Sequential = Annotated[
    bool | None, typer.Option(help="Have later layers correct the errors of earlier ones; no if not given.")
]
CalibrationText = Annotated[
    Path | None, typer.Option("--calibration", help="UTF-8 text typical of the model's use, for calibration.")
]
CalibrationWindows = Annotated[
    int | None, typer.Option(help="Number of windows of the calibration text; 24 if not given.")
]
EvaluationText = Annotated[
    Path | None,
    typer.Option("--evaluate", help="UTF-8 text to measure perplexity on; not one that the model has learnt from."),
]
EvaluationWindows = Annotated[
    int | None, typer.Option(help="Number of windows of the evaluation text, evenly spread; all if not given.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text that both models continue, or answer if they are made for chats; repeatable."),
]
Window = Annotated[int | None, typer.Option(help="Tokens of a window, for every text; 512 if not given.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Layers to compress, by name, re: pattern or class; repeatable. All linear layers if not given.",
    ),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Layers to leave dense, by name, re: pattern or class; repeatable.")
]
Dtype = Annotated[
    str | None, typer.Option(help="Element type to work in: auto (as stored, the default), float32, bfloat16, float16.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of random numbers; 0 if not given.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def share_or_size(budget: str | None) -> float | str | None:
    """A budget as in a recipe, where a bare number is a share.

    Example:
        >>> share_or_size("0.6"), share_or_size("200MB")
        (0.6, '200MB')
    """
    if budget is None:
        return None
    try:
        return float(budget)
    except ValueError:
        return budget


def settings_of(assignments: list[str] | None) -> dict[str, Any] | None:
    """Settings of a method from ``name=value``, each value as in a recipe.

    Raises:
        typer.BadParameter: no ``name=value``, or no YAML.

    Example:
        >>> settings_of(["terms=2", "factors=[[4, 2]]", "seconds=0.5"])
        {'terms': 2, 'factors': [[4, 2]], 'seconds': 0.5}
    """
    settings = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"--set {assignment!r}: expected NAME=VALUE, such as --set terms=2")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"--set {assignment!r}: the value is no YAML") from error
    return settings or None


def command_line() -> str:
    """The command that is running, quoted for a shell."""
    return shlex.join(["mpochain", *sys.argv[1:]])


def print_json(data: Any) -> None:
    """Print data as indented JSON on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and warnings of transformers, which would mix with those of the command."""
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
