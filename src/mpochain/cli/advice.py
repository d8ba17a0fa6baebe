"""Keyword arguments in error messages as options of the command line: ``ignore=`` becomes ``--ignore``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["as_options", "option_names"]

# Keywords whose option has another name than they.
_RENAMED = {"targets": "target", "settings": "set", "prompts": "prompt"}
# Keywords that only Python has.
_PYTHON = {"loss", "config", "evaluate"}
# A keyword argument with a value or without; not a part of a path, of an option or of a longer word.
_VALUE = r"True|False|None|-?\d(?:[\d.e-]*\d)?|\"[^\"]*\"|'[^']*'|\.\.\."
_KEYWORD = re.compile(rf"(?<![\w./=\"'-])([a-z][a-z_]*)=(?:({_VALUE})(?!\w))?(?![\w=/\[(])")


def option_names(parameters: Iterable[Any]) -> dict[str, str]:
    """The option of each keyword that a command has, from its click parameters."""
    options = {}
    for parameter in parameters:
        for option in parameter.opts:
            if option.startswith("--"):
                options[option.removeprefix("--").replace("-", "_")] = option
    return options


def as_options(
    message: str, options: Mapping[str, str], settings: Iterable[str] = (), fields: Iterable[str] = ()
) -> str:
    """An error message in the words of the command line.

    Args:
        message: message of the library, whose advice is in keyword arguments of Python.
        options: option of each keyword of the running command.
        settings: names of the method's settings, which ``--set`` takes.
        fields: names of fields of recipes, for keywords without an option.

    Example:
        >>> options = {"ignore": "--ignore", "target": "--target", "sequential": "--sequential", "set": "--set"}
        >>> as_options("leave it out with ignore=, or see targets=", options)
        'leave it out with --ignore, or see --target'
        >>> as_options("sequential=True needs blocks; give terms=1", options, ["terms"])
        '--sequential needs blocks; give --set terms=1'
        >>> as_options("targets: 'head' matches no layer", options)
        "--target: 'head' matches no layer"
        >>> as_options("hidden=0.5 needs a teacher; give another loss=", options, fields=["hidden"])
        'hidden: 0.5 (in a recipe) needs a teacher; give another loss (in Python)'
    """
    of_method, of_recipe = set(settings), set(fields)

    def replaced(match: re.Match[str]) -> str:
        keyword, value = match[1], match[2]
        option = options.get(keyword) or options.get(_RENAMED.get(keyword, keyword))
        if option is not None:
            if value is None or value == "...":
                return option
            if value == "False":
                return f"--no-{option.removeprefix('--')}"
            if value == "None":
                return f"no {option}"
            return option if value == "True" else f"{option} {value.strip(chr(34) + chr(39))}"
        if keyword in of_method and "set" in options:
            return f"--set {keyword}={(value or '...').strip(chr(34) + chr(39))}"
        if keyword in of_recipe:
            return f"{keyword}{'' if value is None else f': {value}'} (in a recipe)"
        return f"{keyword} (in Python)" if keyword in _PYTHON else match[0]

    field, colon, rest = message.partition(": ")
    option = options.get(_RENAMED.get(field, field))
    return _KEYWORD.sub(replaced, f"{option}: {rest}" if colon and option is not None else message)
