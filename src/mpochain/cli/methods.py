"""``mpochain methods``: list of the compression methods and their settings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mpochain.cli.options import Json, print_json

if TYPE_CHECKING:
    from mpochain.compression import Method

__all__ = ["CommandWithMethods", "methods"]

_WIDTH = 100


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Method to show, or package.module:ClassName for one of your own; by default all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the compression methods and their settings, for --method and --set of mpochain compress and for recipes."""
    from mpochain.compression import METHODS

    table = METHODS if name is None else {name: _method_to_show(name)}
    if as_json:
        print_json({key: _description(method) for key, method in table.items()})
        return
    for key, method in table.items():
        print(_text(key, _description(method)))


class CommandWithMethods(TyperCommand):
    """Command whose help ends with the names of the methods, which are imported only to show the help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help with the names of the methods."""
        from mpochain.compression import METHODS

        self.epilog = f"Methods: {', '.join(METHODS)}.\n\nTo list their settings for --set, run: mpochain methods"
        super().format_help(ctx, formatter)


def _method_to_show(name: str) -> Method:
    """The method of a name; its settings may be incomplete, as they are what is asked for."""
    from mpochain.compression import method_named
    from mpochain.compression.methods.table import method_type

    if ":" not in name:
        return method_named(name)
    method = method_type(name)
    required = any(field.is_required() for field in method.Settings.model_fields.values())
    return method(method.Settings.model_construct()) if required else method()


def _description(method: Method) -> dict[str, Any]:
    """Description of a method for JSON: summary, required data, layers, and settings with value and description."""
    layers = [kind for kind, able in (("linear", method.linear), ("embedding", method.embeddings)) if able]
    summary = inspect.cleandoc(type(method).__doc__ or "").partition("\n\n")[0]
    return {
        "summary": " ".join(re.sub(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", summary).replace("``", "").split()),
        "data": method.needs,
        "layers": layers,
        "settings": {
            field: {
                "value": _plain(getattr(method.settings, field, None)),
                "required": info.is_required(),
                "description": info.description or "",
            }
            for field, info in type(method.settings).model_fields.items()
        },
    }


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)


def _text(name: str, description: dict[str, Any]) -> str:
    """Description of a method as text for the terminal."""
    data = "no calibration data" if description["data"] == "nothing" else "calibration data"
    lines = [
        f"{name}: {' and '.join(description['layers'])} layers, {data}",
        *textwrap.wrap(description["summary"], _WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]
    for setting, values in description["settings"].items():
        value = "VALUE (required)" if values["required"] else json.dumps(values["value"])
        text = f"{setting}={value}  {values['description']}"
        lines += textwrap.wrap(text, _WIDTH, initial_indent="    --set ", subsequent_indent=" " * 12)
    return "\n".join(lines) + "\n"
