"""YAML files of recipes: plain data, paths relative to the file, and values of the command line over both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mpochain.errors import RecipeError
from mpochain.workflows.former_names import current_recipe
from mpochain.workflows.recipe import Recipe

__all__ = ["read_recipe"]

logger = logging.getLogger(__name__)

_LONGEST = 1 << 20
_DEEPEST = 20
# Sections that name a text and read it in windows.
_TEXTS = ("calibration", "evaluation", "finetune")

# Options of the command line whose names differ from those of their fields.
_OPTIONS = {
    "calibration.text": "--calibration",
    "calibration.windows": "--calibration-windows",
    "evaluation.text": "--evaluate",
    "evaluation.windows": "--evaluate-windows",
    "settings": "--set",
    "prompts": "--prompt",
    "targets": "--target",
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain data only: no aliases, with which a short file expands without end, and no key twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not used in recipes", event.start_mark)
        if self.depth >= _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(file: Path | None, flags: Mapping[str, Any] | None = None, *, window: int | None = None) -> Recipe:
    """A recipe from a YAML file; values of the command line replace those of the file.

    Args:
        file: its paths are relative to its own folder; None if everything is in ``flags``.
        flags: values of the command line, nested as in a file; ``None`` for an option that was not given.
        window: tokens of a window, in every section that is there; None for what each section says.

    Raises:
        RecipeError: a file that is no recipe, or a wrong value, naming the field.

    Example:
        >>> flags = {"model": "small", "budget": "60%", "calibration": {"text": "a.txt", "window": None}}
        >>> recipe = read_recipe(None, flags)
        >>> recipe.budget, recipe.calibration.window
        ('60%', 512)
    """
    label = str(file) if file is not None else "command line"
    data: dict[str, Any] = {}
    if file is not None:
        data = current_recipe(_read(file), label)
        _resolve(data, file.parent)
    flags = current_recipe(dict(flags or {}), "command line")
    _override_settings(data, flags, label)
    _override(data, {name: value for name, value in flags.items() if name != "settings"})
    for section in _TEXTS:
        if window is not None and isinstance(data.get(section), dict):
            data[section]["window"] = window
    if "model" not in data:
        raise RecipeError(f"{label}: no model is named; give a folder, a .gguf file, or a name on the Hugging Face hub")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{label}: {_first(error, flags)}") from error


def _first(error: ValidationError, flags: Mapping[str, Any]) -> str:
    """The first error of a recipe in one line: the field, what is wrong, and the option that gives it."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    message = f": {first['msg'].removeprefix('Value error, ')}" if field else first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message += " (not a field of recipes)"
    elif first["type"] == "missing":
        message = " is missing"
    elif first["type"] == "tuple_type":
        message = " should be a list, as in [a, b]"
    option = _option(first["loc"], flags)
    return f"{field}{message}{f' (on the command line {option})' if option else ''}"


def _option(location: tuple[int | str, ...], flags: Mapping[str, Any]) -> str | None:
    """The option of the command for a field of a recipe; None if the command has none."""
    offered: Any = flags
    for key in location:
        if not isinstance(offered, Mapping) or key not in offered:
            return None
        offered = offered[key]
    field = ".".join(map(str, location))
    return _OPTIONS.get(field, f"--{str(location[-1]).replace('_', '-')}") if location else None


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LONGEST:
            raise RecipeError(f"{file} is larger than {_LONGEST >> 20} MiB, which no recipe is")
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {file}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} is no recipe: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{file} is no recipe: expected names with values, as in 'model: folder'")
    return data


def _resolve(data: dict[str, Any], folder: Path) -> None:
    """Make paths relative to the recipe's folder, so that it means the same wherever the command is run."""
    for name in _TEXTS:
        section = data.get(name)
        if isinstance(section, dict) and isinstance(section.get("text"), str):
            section["text"] = str(folder / section["text"])
    for units in _units_of(data):
        for key in ("listing", "wordnet"):
            if isinstance(units.get(key), str):
                units[key] = str(folder / units[key])
    for section, key in ((data, "model"), (data.get("finetune"), "teacher")):
        # A path that does not exist is a name on the hub.
        if isinstance(section, dict) and isinstance(section.get(key), str) and (folder / section[key]).exists():
            section[key] = str(folder / section[key])


def _units_of(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The units of every group, in data that is not validated yet."""
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        groups = stage.get("groups") if isinstance(stage, dict) else None
        for group in groups if isinstance(groups, list) else []:
            if isinstance(group, dict) and isinstance(group.get("units"), dict):
                yield group["units"]


def _override_settings(data: dict[str, Any], flags: Mapping[str, Any], label: str) -> None:
    """Put settings of the command line over those of the file, which go with the file's method alone."""
    settings = data.get("settings", {})
    if not isinstance(settings, dict):
        return
    method = flags.get("method")
    if method is not None and settings and method != data.get("method"):
        logger.warning("%s: its settings are not used, as they go with method %s", label, data.get("method"))
        settings = {}
    # None is a value here, such as "no number of terms".
    settings = {**settings, **(flags.get("settings") or {})}
    if settings or "settings" in data:
        data["settings"] = settings


def _override(data: dict[str, Any], flags: Mapping[str, Any]) -> None:
    for key, value in flags.items():
        if isinstance(value, Mapping):
            section = data.get(key, {})
            if isinstance(section, dict):
                _override(section, value)
                if section:
                    data[key] = section
        elif value is not None:
            data[key] = value
