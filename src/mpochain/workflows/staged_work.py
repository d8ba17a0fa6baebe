"""Resumable state of distillation in stages: the model after its last step, and results so far, in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mpochain.errors import CheckpointError
from mpochain.language import LanguageModel, save_language_model
from mpochain.system.files import require_writable, write_bytes
from mpochain.train import FinetuneConfig
from mpochain.workflows.former_names import current_record
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.stage import Group, Stage

__all__ = ["StagedWork"]

# The state as JSON. Its keys are those of earlier versions: `of`, what every stage depends on; `begun`, the stages that
# were begun; `reached`, the steps that are done; `found`, the results by their keys; `at`, the folder of the model.
_STATE = "found.json"


class StagedWork:
    """The model after the last step that is done, and the results so far.

    Args:
        folder: made if needed; work of the same recipe there is resumed.
        recipe: with stages; those that were not begun may have changed.

    Raises:
        CheckpointError: the work there is damaged or of another recipe, naming what differs.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = require_writable(folder)
        self._file, self._recipe = folder / _STATE, recipe
        self._state: dict[str, Any] = {"of": _source(recipe), "begun": [], "reached": [], "found": {}, "at": None}
        if not self._file.exists():
            return
        try:
            self._state = json.loads(self._file.read_text())
            begun, source = self._state["begun"], current_record(self._state["of"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._file} is damaged: {error}; remove {folder}") from error
        for key, value in _source(recipe).items():
            if source.get(key) != value:
                raise CheckpointError(
                    f"{folder} is the work of another recipe: {key} was {source.get(key)!r} and is {value!r} now; "
                    "remove it, or name another folder"
                )
        stages = [_essential(_stage_record(stage, recipe.training_of(stage))) for stage in recipe.stages]
        for position, record in enumerate(begun):
            if position >= len(stages) or stages[position] != _essential(record):
                raise CheckpointError(
                    f"{folder} is the work of another recipe: its stage {record['stage']['name']} was begun with other "
                    "settings; remove it, or name another folder"
                )

    def begin(self, stage: Stage) -> None:
        """Record the settings of a stage: from now on they may not change, as those of later stages still may."""
        if len(self._state["begun"]) <= self._recipe.stages.index(stage):
            self._state["begun"].append(_stage_record(stage, self._recipe.training_of(stage)))
            self._write()

    def remember(self, key: str, compute: Callable[[], Any]) -> None:
        """Compute a result and keep it, unless it is known."""
        if key not in self._state["found"]:
            self._state["found"][key] = compute()
            self._write()

    def recall(self, key: str) -> Any:
        """A result that was kept."""
        return self._state["found"][key]

    def save(self, language: LanguageModel, stage: str, step: str, results: Mapping[str, Any] | None = None) -> None:
        """Keep the model after a step, with results of it, in place of the model before and its training state.

        Args:
            language: the model as it is now.
            stage: name of the stage.
            step: ``"smaller"`` once its layers are compressed, ``"learnt"`` once the model is finetuned.
            results: by their keys.
        """
        before, name = self._state["at"], f"{stage}.{step}"
        save_language_model(language, self.folder / name)
        self._state["at"] = name
        self._state["found"].update(results or {})
        self._state["reached"].append(name)
        self._write()
        if before is not None:
            shutil.rmtree(self.folder / before)
        if step == "learnt":
            (self.folder / f"{stage}.state").unlink(missing_ok=True)

    def has(self, stage: str, step: str) -> bool:
        """Whether a step of a stage is done; see :meth:`save` for the steps."""
        return f"{stage}.{step}" in self._state["reached"]

    def latest(self) -> Path | None:
        """The folder of the model after the last step that is done; None before the first."""
        return None if self._state["at"] is None else self.folder / self._state["at"]

    def remove(self) -> None:
        """Delete the folder; first the file by which an interrupted run would resume."""
        self._file.unlink()
        shutil.rmtree(self.folder)

    def _write(self) -> None:
        write_bytes(self._file, (json.dumps(self._state) + "\n").encode())


def _source(recipe: Recipe) -> dict[str, Any]:
    """What every stage depends on."""
    source = recipe.model_dump(mode="json", include={"model", "dtype", "seed", "calibration", "finetune"})
    source["finetune"].pop("training")
    for section in (recipe.finetune, recipe.calibration):
        if section is not None and section.text.exists():
            source[f"sha256 of {section.text.name}"] = sha256(section.text.read_bytes()).hexdigest()
    return source


def _stage_record(stage: Stage, training: FinetuneConfig) -> dict[str, Any]:
    """What a stage depends on by itself."""
    return {"stage": stage.model_dump(mode="json"), "training": training.model_dump(mode="json")}


def _essential(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a stage without fields that have their defaults, which an earlier version may not know."""
    stage = record["stage"]
    groups = [_without_defaults(group, Group) for group in stage["groups"]]
    return {
        "stage": {**_without_defaults(stage, Stage), "groups": groups},
        "training": _without_defaults(record["training"], FinetuneConfig),
    }


def _without_defaults(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Fields of a model, as JSON, that differ from their defaults or that the model does not know."""
    defaults = {
        name: list(default) if isinstance(default, tuple) else default
        for name, field in model.model_fields.items()
        for default in [field.get_default(call_default_factory=True)]
    }
    return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}
