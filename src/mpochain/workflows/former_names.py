"""Former names in recipes, records and files of runs, read as the names they have now.

Finetuning after compression was called healing: recipes, published records and interrupted runs of that time stay
readable. Nothing else in the library knows the old names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.errors import RecipeError

__all__ = ["current_recipe", "current_record", "existing_file", "existing_folder"]

logger = logging.getLogger(__name__)

# Section of a recipe, None for the top: former field, field of today.
_FIELDS = ((None, "healing", "finetune"), ("comparison", "heal", "finetune"))

# How the names of runs ended, and end today; and files of a run, former and of today.
_RUN = ("-healed", "-finetuned")
_FILES = {"finetune.json": "healing.json", "finetune.state": "healing.state"}


def current_recipe(data: dict[str, Any], label: str) -> dict[str, Any]:
    """The fields of a recipe under the names of today; a warning tells the new name of each former one.

    Args:
        data: as it was read, not validated.
        label: where it came from, for messages.

    Raises:
        RecipeError: a field under both names.

    Example:
        >>> current_recipe({"model": "gpt2", "finetune": {"text": "a.txt"}}, "recipe.yaml")
        {'model': 'gpt2', 'finetune': {'text': 'a.txt'}}
    """
    current = dict(data)
    for section, former, name in _FIELDS:
        fields = current if section is None else current.get(section)
        if not isinstance(fields, Mapping) or former not in fields:
            continue
        place = "" if section is None else f"{section}."
        if name in fields:
            raise RecipeError(
                f"{label}: {place}{former} is the former name of {place}{name}, which is given too; keep {place}{name}"
            )
        logger.warning("%s: %s%s is called %s%s now; rename it", label, place, former, place, name)
        renamed = {(name if key == former else key): value for key, value in fields.items()}
        current = renamed if section is None else {**current, section: renamed}
    return current


def current_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a run of a comparison, or the source of a distillation, under the names of today.

    Example:
        >>> record = current_record({"name": "svd-0.6-healed", "setting": {"healing": {"window": 512}}})
        >>> record
        {'name': 'svd-0.6-finetuned', 'setting': {'finetune': {'window': 512}}}
    """
    current = {("finetune" if key == "healing" else key): value for key, value in record.items()}
    if isinstance(current.get("name"), str):
        current["name"] = current["name"].removesuffix(_RUN[0]) + _RUN[1] * current["name"].endswith(_RUN[0])
    if isinstance(current.get("setting"), dict):
        current["setting"] = current_record(current["setting"])
    return current


def existing_file(folder: Path, name: str) -> Path:
    """The file of a run: under its former name if only that is there, else under the name of today.

    Args:
        folder: of the run, or of a comparison.
        name: of today, such as ``finetune.state`` or ``svd-0.6-finetuned.json``.
    """
    stem, dot, suffix = name.rpartition(".")
    former = folder / _FILES.get(name, f"{_former_run(stem)}{dot}{suffix}")
    return former if former.exists() and not (folder / name).exists() else folder / name


def existing_folder(folder: Path, run: str) -> Path:
    """The folder of a run of a comparison: under its former name if only that is there, else under that of today."""
    former = folder / _former_run(run)
    return former if former.exists() and not (folder / run).exists() else folder / run


def _former_run(run: str) -> str:
    return run.removesuffix(_RUN[1]) + _RUN[0] * run.endswith(_RUN[1])
