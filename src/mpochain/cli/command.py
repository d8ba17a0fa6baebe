"""Options that every command has: how much is printed, and which extensions are imported."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mpochain.cli.processes import joined
from mpochain.errors import ArgumentError
from mpochain.system.extensions import import_extensions
from mpochain.system.paths import require_path
from mpochain.system.progress import hide_progress

__all__ = ["BROKEN_PIPE", "command"]

# Exit status if the reader of the output closed it, as `| head` does: that of a program that SIGPIPE ends.
BROKEN_PIPE = 141

_OPTIONS = {
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only, no log and no progress.")
    ],
    "verbose": Annotated[
        bool, typer.Option("--verbose", "-v", help="Print details to the log, and the traceback of an internal error.")
    ],
    "imports": Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Module to import first, which adds layers, methods or kernels of your own; repeatable.",
        ),
    ],
}


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command to the function of one.

    A function that has one of them keeps it, and receives its value.

    Example:
        >>> def evaluate(model: str) -> None: ...
        >>> list(inspect.signature(command(evaluate)).parameters)
        ['model', 'quiet', 'verbose', 'imports']
    """
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    own = signature.parameters
    added = [name for name in _OPTIONS if name not in own]

    @functools.wraps(function)
    def run(*args: Any, **values: Any) -> None:
        quiet, verbose, imports = (values.get(name) for name in _OPTIONS)
        if quiet and verbose:
            raise ArgumentError("--quiet and --verbose contradict each other; give one of them")
        if quiet:
            logging.getLogger("mpochain").setLevel(logging.WARNING)
            hide_progress()
        elif verbose:
            logging.getLogger("mpochain").setLevel(logging.DEBUG)
        for value in values.values():
            if isinstance(value, Path):
                require_path(value)
        import_extensions(imports or (), installed=True)
        try:
            with joined(function.__name__, values.get("device")):
                function(*args, **{name: value for name, value in values.items() if name not in added})
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more at its end, which would print an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None

    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in own.items()]
    for name in added:
        default = None if name == "imports" else False
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_OPTIONS[name])
        )
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
