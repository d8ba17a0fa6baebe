"""Reading a recipe: YAML of plain data, paths from its own folder, and what was said on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mpochain.errors import RecipeError
from mpochain.workflows.recipe import Recipe

__all__ = ["read_recipe"]

_LONGEST = 1 << 20
_DEEPEST = 20
# The sections that name a text and are read in windows.
_TEXTS = ("calibration", "evaluation", "healing")

# What the command line calls fields of these; it has names of its own for those of a training.
_OPTIONS = {
    "healing.text": "--text",
    "healing.windows": "--windows",
    "healing.teacher": "--teacher",
    "calibration.text": "--calibration",
    "calibration.windows": "--calibration-windows",
    "evaluation.text": "--evaluate",
    "evaluation.windows": "--evaluate-windows",
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain data only: no aliases, by which a short file becomes an endless one, and no key twice."""

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
    """A recipe from a YAML file, with what was said on the command line in place of what the file says.

    Args:
        file: its paths go from its own folder; None if everything is in ``flags``.
        flags: nested like the file; ``None`` for what was not said.
        window: tokens of a window in every section there is; None for what they say themselves.

    Raises:
        RecipeError: a file that is no recipe, or a wrong value, naming the field.

    Example:
        >>> flags = {"model": "small", "budget": "60%", "calibration": {"text": "a.txt", "window": None}}
        >>> recipe = read_recipe(None, flags)
        >>> recipe.budget, recipe.calibration.window
        ('60%', 512)
    """
    data = _read(file) if file is not None else {}
    if file is not None:
        _resolve(data, file.parent)
    _override(data, flags or {})
    for part in _TEXTS:
        if window is not None and isinstance(data.get(part), dict):
            data[part]["window"] = window
    label = str(file) if file is not None else "command line"
    if "model" not in data:
        raise RecipeError(f"{label}: no model is named; give a folder, a .gguf file, or a name on the Hugging Face hub")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        message = f": {first['msg'].removeprefix('Value error, ')}"
        if first["type"] == "extra_forbidden":
            message += " (not a field of recipes)"
        elif first["type"] == "missing":
            message = " is missing"
        elif first["type"] == "tuple_type":
            message = " should be a list, as in [a, b]"
        option = _option(first["loc"], flags or {})
        said = f" (on the command line {option})" if option else ""
        raise RecipeError(f"{label}: {where}{message}{said}") from error


def _option(place: tuple[int | str, ...], flags: Mapping[str, Any]) -> str | None:
    """What the command calls a field of a recipe; None for one that it has no option for."""
    offered: Any = flags
    for key in place:
        if not isinstance(offered, Mapping) or key not in offered:
            return None
        offered = offered[key]
    field = ".".join(map(str, place))
    if field.startswith("healing.training."):
        return f"--{str(place[-1]).replace('_', '-')}"
    return _OPTIONS.get(field)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LONGEST:
            raise RecipeError(f"{file} is larger than {_LONGEST >> 20} MiB, which no recipe is")
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # a safe one
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {file}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} is no recipe: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{file} is no recipe: expected names with values, as in 'model: folder'")
    return data


def _resolve(data: dict[str, Any], folder: Path) -> None:
    """Paths of a recipe go from its own folder, so that it means the same wherever it is run from."""
    for part in _TEXTS:
        section = data.get(part)
        if isinstance(section, dict) and isinstance(section.get("text"), str):
            section["text"] = str(folder / section["text"])
    for units in _units_of(data):
        for key in ("listing", "wordnet"):
            if isinstance(units.get(key), str):
                units[key] = str(folder / units[key])
    for section, key in ((data, "model"), (data.get("healing"), "teacher")):
        # Otherwise it is a name on the hub.
        if isinstance(section, dict) and isinstance(section.get(key), str) and (folder / section[key]).exists():
            section[key] = str(folder / section[key])


def _units_of(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The units of every group, in data that nobody has looked at."""
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        groups = stage.get("groups") if isinstance(stage, dict) else None
        for group in groups if isinstance(groups, list) else []:
            if isinstance(group, dict) and isinstance(group.get("units"), dict):
                yield group["units"]


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
