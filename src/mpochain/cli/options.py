"""Options and output functions that several commands share."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mpochain.errors import printable

__all__ = [
    "Budget",
    "CalibrationText",
    "CalibrationWindows",
    "Device",
    "DryRun",
    "Dtype",
    "EvaluationText",
    "EvaluationWindows",
    "FurtherTexts",
    "Ignore",
    "Json",
    "Method",
    "Overwrite",
    "Prompts",
    "RecipeFile",
    "Seed",
    "Sequential",
    "Setting",
    "Shard",
    "Source",
    "SpeedShare",
    "Stages",
    "Stream",
    "Targets",
    "Timed",
    "Verbose",
    "Window",
    "command_line",
    "count_or_all",
    "evaluation_section",
    "print_json",
    "quiet_transformers",
    "settings_of",
    "share_or_size",
    "shares_or_sizes",
]

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Dense model: a folder, a .gguf file, or a name on the Hugging Face hub. By default the recipe's model.",
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file; options override its values.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="What may be kept: a share of the layers' storage (0.6 or 60%), the size of the saved model (200MB), that "
        "of its layers alone ('100MB of layers'), bits per weight of the layers ('3 bits'), or a limit of each layer's "
        "relative error ('5% error')."
    ),
]
SpeedShare = Annotated[
    str | None,
    typer.Option(
        "--speed",
        metavar="SHARE",
        help="Second budget: the share of the layers' multiply-adds that may be kept (0.7 or 70%).",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Compression method; by default auto for a budget in bytes or bits, and interpolative for others. All are "
        "named at the end of this help. Or package.module:ClassName for a method of your own."
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method, with a YAML value; repeatable."),
]
Sequential = Annotated[
    bool | None,
    typer.Option(
        help="Let layers that write the hidden states make up for their drift from the dense model's, where held-out "
        "windows show that it helps; by default off. Takes minutes."
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        help="Hold one block of the model at a time in memory, for a model larger than memory; hidden states and built "
        "layers are files in the folder of --out. By default off."
    ),
]
Stages = Annotated[
    str | None,
    typer.Option(
        metavar="BUDGET,...",
        help="Budgets of earlier stages, each larger than the next, such as 0.9 or '6 bits,4 bits': each stage "
        "collects its statistics in the model of the stage before. Each takes as long as a compression.",
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        help="Train each block on the dense block's outputs after the compression; by default off. Takes minutes."
    ),
]
CalibrationText = Annotated[
    Path | None, typer.Option("--calibration", help="UTF-8 text typical of the model's use, for calibration.")
]
CalibrationWindows = Annotated[
    int | None, typer.Option(help="Number of windows of the calibration text; by default 24, or more for wide layers.")
]
EvaluationText = Annotated[
    Path | None,
    typer.Option("--evaluate", help="UTF-8 text to measure perplexity on; not used for calibration or training."),
]
FurtherTexts = Annotated[
    list[Path] | None,
    typer.Option("--also", help="Further text to measure perplexity on, of another kind; repeatable."),
]
EvaluationWindows = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|all",
        help="Number of windows, spread evenly over the evaluation text, or all; by default at most 64.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text that both models continue, or answer if they are chat models; repeatable."),
]
Timed = Annotated[
    bool, typer.Option("--time/--no-time", " /--no-speed", help="Time the dense and the compressed model.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the predicted result per layer; write nothing.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show a row for every layer, and details in the log.")]
Window = Annotated[int | None, typer.Option(help="Tokens per window, for every text; by default 512.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Layers to compress, by name, re: pattern or class; repeatable. By default all linear layers.",
    ),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Layers to leave dense, by name, re: pattern or class; repeatable.")
]
Dtype = Annotated[
    str | None, typer.Option(help="Dtype to work in: auto (as stored, the default), float32, bfloat16 or float16.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where to work: cpu (the default), cuda, cuda:1, mps, or auto for the accelerator if there is one."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of random numbers; by default 0.", min=0)]
Shard = Annotated[
    bool | None,
    typer.Option(
        "--shard/--no-shard",
        help="Spread parameters over the processes of torchrun (FSDP2), rather than copy them to all.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace the model that an earlier run left in the folder; other files in it stay."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def evaluation_section(text: Path | None, windows: str | None, also: list[Path] | None = None) -> dict[str, Any]:
    """The section ``evaluation`` of a recipe from the options of a command; an option that is not given is None.

    Example:
        >>> evaluation_section(Path("test.txt"), "all", None)
        {'text': 'test.txt', 'windows': 'all', 'also': None}
    """
    return {
        "text": None if text is None else str(text),
        "windows": count_or_all(windows),
        "also": tuple(map(str, also)) if also else None,
    }


def share_or_size(budget: str | None) -> float | str | None:
    """Convert a budget option to a recipe's budget; a bare number is a share.

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


def shares_or_sizes(budgets: str | None) -> tuple[float | str, ...] | None:
    """Convert an option with budgets between commas.

    Example:
        >>> shares_or_sizes("0.9, 4 bits"), shares_or_sizes(None)
        ((0.9, '4 bits'), None)
    """
    if budgets is None:
        return None
    parsed = (share_or_size(budget.strip()) for budget in budgets.split(","))
    return tuple(budget for budget in parsed if budget is not None)


def count_or_all(windows: str | None) -> int | str | None:
    """Convert the number of evaluation windows to a recipe's field; what is no number is checked with the recipe.

    Example:
        >>> count_or_all("12"), count_or_all("all"), count_or_all(None)
        (12, 'all', None)
    """
    try:
        return windows if windows is None else int(windows)
    except ValueError:
        return windows


def settings_of(assignments: list[str] | None) -> dict[str, Any] | None:
    """Parse settings of a method from ``name=value``, with YAML values.

    Raises:
        typer.BadParameter: an assignment is not ``name=value``, or its value is not YAML.

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
            raise typer.BadParameter(f"--set {assignment!r}: the value is not valid YAML") from error
    return settings or None


def command_line() -> str:
    """Return the running command, quoted for a shell."""
    return shlex.join(["mpochain", *sys.argv[1:]])


def print_json(data: Any) -> None:
    """Print data as indented JSON on stdout; a number that is not finite is null, as JSON has none."""
    print(printable(json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers, which would mix with the command's."""
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
