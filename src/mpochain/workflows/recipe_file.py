"""YAML recipe files: plain data with paths relative to the file, overridden by command-line options."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mpochain.errors import RecipeError
from mpochain.system.paths import as_path, exists, file_problem
from mpochain.validation import listed, parsed, problems
from mpochain.workflows.former_names import current_recipe
from mpochain.workflows.recipe import Recipe

__all__ = ["read_recipe"]

logger = logging.getLogger(__name__)

_LONGEST = 1 << 20
_DEEPEST = 20
# Sections that name a text to read in windows.
_TEXTS = ("calibration", "evaluation", "finetune")

# Command-line options whose names differ from their fields.
_OPTIONS = {
    "calibration.text": "--calibration",
    "calibration.windows": "--calibration-windows",
    "evaluation.text": "--evaluate",
    "evaluation.windows": "--evaluate-windows",
    "evaluation.also": "--also",
    "settings": "--set",
    "prompts": "--prompt",
    "targets": "--target",
    "stage_budgets": "--stages",
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Loader of plain data: no aliases, which let a short file expand without limit, no tags, no duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not used in recipes", event.start_mark)
        if self.depth >= _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", self.peek_event().start_mark)
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            message = f"tags such as {event.tag!r} are not used in recipes; write the value alone, or in quotes"
            raise yaml.composer.ComposerError(None, None, message, event.start_mark)
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
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(
    file: Path | str | None, flags: Mapping[str, Any] | None = None, *, window: int | None = None
) -> Recipe:
    """Read a recipe from a YAML file; command-line values override those of the file.

    Args:
        file: recipe file, whose paths are relative to its folder; None if everything is in ``flags``.
        flags: command-line values, nested as in a file; None for an option that was not given.
        window: tokens per window in every section of the recipe; None to keep each section's value.

    Raises:
        RecipeError: the file is not a recipe, or a value is invalid; the message names the field.

    Example:
        >>> flags = {"model": "small", "budget": "60%", "calibration": {"text": "a.txt", "window": None}}
        >>> recipe = read_recipe(None, flags)
        >>> recipe.budget, recipe.calibration.window
        ('60%', 512)
    """
    file = None if file is None else as_path(file, "file")
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
        missing = "no model is named; give a folder, a .gguf file, or a name on the Hugging Face hub"
        try:
            parsed(Recipe, {**data, "model": "model"})
        except ValidationError as error:
            raise RecipeError(listed(label, [missing, *_problems(error, flags)])) from error
        raise RecipeError(f"{label}: {missing}")
    try:
        return parsed(Recipe, data)
    except ValidationError as error:
        raise RecipeError(listed(label, _problems(error, flags))) from error


def _problems(error: ValidationError, flags: Mapping[str, Any]) -> list[str]:
    """One line for each invalid field, with its command-line option."""

    def note(place: tuple[int | str, ...]) -> str:
        option = _option(place, flags)
        return f" (on the command line {option})" if option else ""

    return problems(error, Recipe, note=note)


def _option(location: tuple[int | str, ...], flags: Mapping[str, Any]) -> str | None:
    """Command-line option for a recipe field; None if the command has no such option."""
    offered: Any = flags
    while location and isinstance(location[-1], int):  # an item of a list that the option gives as a whole
        location = location[:-1]
    for key in location:
        if not isinstance(offered, Mapping) or key not in offered:
            return None
        offered = offered[key]
    field = ".".join(map(str, location))
    return _OPTIONS.get(field, f"--{str(location[-1]).replace('_', '-')}") if location else None


def _read(file: Path) -> dict[str, Any]:
    problem = file_problem(file)
    if problem is not None:
        raise RecipeError(f"cannot read the recipe {file}: {problem}")
    if file.stat().st_size > _LONGEST:
        raise RecipeError(f"{file} is larger than {_LONGEST >> 20} MiB, too large for a recipe")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {file}: {error}; expected UTF-8 text") from error
    try:
        data = yaml.load(text, Loader=_Loader)  # a safe loader
    except Exception as error:  # constructors of yaml raise what Python raises for a date or number that is none
        raise RecipeError(f"{file} is not a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{file} is not a recipe: expected names with values, as in 'model: folder'")
    return data


def _resolve(data: dict[str, Any], folder: Path) -> None:
    """Resolve paths relative to the recipe's folder, so that a recipe works from any working directory."""
    for name in _TEXTS:
        section = data.get(name)
        if isinstance(section, dict) and isinstance(section.get("text"), str):
            section["text"] = str(folder / section["text"])
        if isinstance(section, dict) and isinstance(section.get("also"), list):
            section["also"] = [str(folder / text) if isinstance(text, str) else text for text in section["also"]]
    for units in _units_of(data):
        for key in ("listing", "wordnet"):
            if isinstance(units.get(key), str):
                units[key] = str(folder / units[key])
    for section, key in ((data, "model"), (data.get("finetune"), "teacher")):
        # A path that does not exist is a name on the hub.
        if isinstance(section, dict) and isinstance(section.get(key), str) and exists(folder / section[key]):
            section[key] = str(folder / section[key])


def _units_of(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the units of every group in data that are not validated yet."""
    stages = data.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        groups = stage.get("groups") if isinstance(stage, dict) else None
        for group in groups if isinstance(groups, list) else []:
            if isinstance(group, dict) and isinstance(group.get("units"), dict):
                yield group["units"]


def _override_settings(data: dict[str, Any], flags: Mapping[str, Any], label: str) -> None:
    """Override method settings of the file by command-line ones; another method drops those of the file."""
    settings = data.get("settings", {})
    if not isinstance(settings, dict):
        return
    method = flags.get("method")
    if method is not None and settings and method != data.get("method"):
        logger.warning("%s: its settings are not used, because they belong to method %s", label, data.get("method"))
        settings = {}
    # None is a valid value here, for example for the number of terms.
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
