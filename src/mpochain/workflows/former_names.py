"""Former names in recipes, records and files of runs, mapped to their current names.

Finetuning after compression was once called healing; recipes, published records and interrupted runs from that time
stay readable. Only this module knows the former names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.errors import RecipeError

__all__ = ["FILES", "current_recipe", "current_record", "existing_file", "existing_folder"]

logger = logging.getLogger(__name__)

# Section of a recipe (None for the top level), former field, current field.
_FIELDS = ((None, "healing", "finetune"), ("comparison", "heal", "finetune"))

# Former and current suffix of run names; and the former file name of each current one.
_RUN = ("-healed", "-finetuned")
FILES = {"finetune.json": "healing.json", "finetune.state": "healing.state"}


def current_recipe(data: dict[str, Any], label: str) -> dict[str, Any]:
    """Rename the former fields of a recipe, with a warning for each.

    Args:
        data: the recipe as read from its file, not validated yet.
        label: origin of the data, for messages.

    Raises:
        RecipeError: a field is given under both names.

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
                f"{label}: {place}{former} is the former name of {place}{name}, but both are given; keep only "
                f"{place}{name}"
            )
        logger.warning("%s: %s%s is now called %s%s; rename it", label, place, former, place, name)
        renamed = {(name if key == former else key): value for key, value in fields.items()}
        current = renamed if section is None else {**current, section: renamed}
    return current


def current_record(record: dict[str, Any]) -> dict[str, Any]:
    """Rename the former fields in the record of a comparison's run, or in the source of a distillation.

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
    """Path of a run's file: under its former name if only that exists, otherwise under the current name.

    Args:
        folder: folder of the run, or of a comparison.
        name: current name, such as ``finetune.state`` or ``svd-0.6-finetuned.json``.
    """
    stem, dot, suffix = name.rpartition(".")
    former = folder / FILES.get(name, f"{_former_run(stem)}{dot}{suffix}")
    return former if former.exists() and not (folder / name).exists() else folder / name


def existing_folder(folder: Path, run: str) -> Path:
    """Folder of a comparison's run: under its former name if only that exists, otherwise under the current name."""
    former = folder / _former_run(run)
    return former if former.exists() and not (folder / run).exists() else folder / run


def _former_run(run: str) -> str:
    return run.removesuffix(_RUN[1]) + _RUN[0] * run.endswith(_RUN[1])
