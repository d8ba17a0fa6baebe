"""Resumable state of staged distillation: the model after its last step and the results so far, in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mpochain.errors import CheckpointError
from mpochain.language import LanguageModel, save_language_model
from mpochain.system.files import require_writable
from mpochain.train import FinetuneConfig
from mpochain.train.state import remove_state
from mpochain.workflows.former_names import current_record
from mpochain.workflows.json_file import read_sealed_json, write_sealed_json
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.stage import Group, Stage

__all__ = ["StagedWork"]

# The state as JSON, with the keys of earlier versions: `of`, the inputs of all stages; `begun`, the settings of started
# stages; `reached`, the finished steps; `found`, the results by key; `at`, the folder of the current model.
_STATE = "found.json"


class StagedWork:
    """Model after the last finished step, and the results so far.

    Args:
        folder: created if needed; existing work of the same recipe is resumed.
        recipe: recipe with stages; stages that have not started may have changed.

    Raises:
        CheckpointError: the work in the folder is damaged or belongs to another recipe; the message names the
            difference.
        OutputError: the folder is not writable.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = require_writable(folder)
        self._file, self._recipe = folder / _STATE, recipe
        self._state: dict[str, Any] = {"of": _source(recipe), "begun": [], "reached": [], "found": {}, "at": None}
        if not self._file.exists():
            return
        try:
            self._state = read_sealed_json(self._file)
            begun, self._state["of"] = self._state["begun"], current_record(self._state["of"])
        except (CheckpointError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._file} is damaged: {error}; remove {folder} to start again") from error
        self.require(_source(recipe))
        stages = [_essential(_stage_record(stage, recipe.training_of(stage))) for stage in recipe.stages]
        for position, record in enumerate(begun):
            if position >= len(stages) or stages[position] != _essential(record):
                raise CheckpointError(
                    f"{folder} belongs to another recipe: its stage {record['stage']['name']} was started with other "
                    "settings; remove it, or name another folder"
                )

    def require(self, source: Mapping[str, Any]) -> None:
        """Check that inputs of all stages are those that the work was begun with, and record new ones.

        Raises:
            CheckpointError: one of them differs; the message names it.
        """
        for key, value in source.items():
            before = self._state["of"].setdefault(key, value)
            if before != value:
                raise CheckpointError(
                    f"{self.folder} belongs to another recipe: {key} was {before!r} and is now {value!r}; remove "
                    "it, or name another folder"
                )

    def begin(self, stage: Stage) -> None:
        """Record the settings of a stage, which must not change from now on; those of later stages still may."""
        if len(self._state["begun"]) <= self._recipe.stages.index(stage):
            self._state["begun"].append(_stage_record(stage, self._recipe.training_of(stage)))
            self._write()

    def remember(self, key: str, compute: Callable[[], Any]) -> None:
        """Compute and store a result, unless it is already stored."""
        if key not in self._state["found"]:
            self._state["found"][key] = compute()
            self._write()

    def recall(self, key: str) -> Any:
        """Return a stored result."""
        return self._state["found"][key]

    def save(self, language: LanguageModel, stage: str, step: str, results: Mapping[str, Any] | None = None) -> None:
        """Save the model and results after a step; see :meth:`write` and :meth:`finish`."""
        self.write(language, stage, step)
        self.finish(stage, step, results)

    def write(self, language: LanguageModel, stage: str, step: str) -> Path:
        """Save the model after a step, which is not finished yet, and return its folder.

        Args:
            language: the model after the step.
            stage: name of the stage.
            step: ``"smaller"`` after compression of the layers, ``"learnt"`` after finetuning.
        """
        save_language_model(language, self.folder / f"{stage}.{step}")
        return self.folder / f"{stage}.{step}"

    def finish(self, stage: str, step: str, results: Mapping[str, Any] | None = None) -> None:
        """Record that a step is finished whose model was saved, and remove the model before and its training state.

        Args:
            stage: name of the stage.
            step: see :meth:`write`.
            results: results by key.
        """
        before, name = self._state["at"], f"{stage}.{step}"
        self._state["at"] = name
        self._state["found"].update(results or {})
        self._state["reached"].append(name)
        self._write()
        if before is not None:
            shutil.rmtree(self.folder / before)
        if step == "learnt":
            remove_state(self.folder / f"{stage}.state")

    def has(self, stage: str, step: str) -> bool:
        """Whether a step of a stage is finished; see :meth:`save` for the steps."""
        return f"{stage}.{step}" in self._state["reached"]

    def latest(self) -> Path | None:
        """Folder of the model after the last finished step; None before the first."""
        return None if self._state["at"] is None else self.folder / self._state["at"]

    def _write(self) -> None:
        write_sealed_json(self._file, self._state)


def _source(recipe: Recipe) -> dict[str, Any]:
    """Inputs that all stages depend on."""
    source = recipe.model_dump(mode="json", include={"model", "dtype", "seed", "calibration", "evaluation", "finetune"})
    for settings in ("training", "shard"):  # of a stage, and of where it is computed
        source["finetune"].pop(settings)
    for section in (recipe.finetune, recipe.calibration, recipe.evaluation):
        if section is not None and section.text.exists():
            source[f"sha256 of {section.text.name}"] = sha256(section.text.read_bytes()).hexdigest()
    return source


def _stage_record(stage: Stage, training: FinetuneConfig) -> dict[str, Any]:
    """Settings of one stage."""
    return {"stage": stage.model_dump(mode="json"), "training": training.model_dump(mode="json")}


def _essential(record: dict[str, Any]) -> dict[str, Any]:
    """Settings of a stage without default values, since an earlier version may not know a new field."""
    stage = record["stage"]
    groups = [_without_defaults(group, Group) for group in stage["groups"]]
    return {
        "stage": {**_without_defaults(stage, Stage), "groups": groups},
        "training": _without_defaults(record["training"], FinetuneConfig),
    }


def _without_defaults(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """JSON fields that differ from the model's defaults or that the model does not know."""
    defaults = {
        name: list(default) if isinstance(default, tuple) else default
        for name, field in model.model_fields.items()
        for default in [field.get_default(call_default_factory=True)]
    }
    return {name: value for name, value in data.items() if name not in defaults or value != defaults[name]}
