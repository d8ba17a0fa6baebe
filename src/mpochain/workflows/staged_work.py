"""What distillation in stages keeps on disk, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError
from mpochain.language import LanguageModel, save_language_model
from mpochain.system.files import require_writable, write_bytes
from mpochain.workflows.recipe import Recipe, Stage

__all__ = ["StagedWork"]

_FOUND = "found.json"


class StagedWork:
    """The model where it last stood, and what was found out.

    Args:
        folder: made if needed; work of the same recipe there is gone on with.
        recipe: with stages; those that were not begun may have changed.

    Raises:
        CheckpointError: the work there is damaged or of another recipe, naming what differs.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = require_writable(folder)
        self._file, self._recipe = folder / _FOUND, recipe
        self._found: dict[str, Any] = {"of": _source(recipe), "begun": [], "reached": [], "found": {}, "at": None}
        if not self._file.exists():
            return
        try:
            self._found = json.loads(self._file.read_text())
            begun, source = self._found["begun"], self._found["of"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._file} is damaged: {error}; remove {folder}") from error
        for key, value in _source(recipe).items():
            if source.get(key) != value:
                raise CheckpointError(
                    f"{folder} is the work of another recipe: {key} was {source.get(key)!r} and is {value!r} now; "
                    "remove it, or name another folder"
                )
        stages = [_begun(recipe, stage) for stage in recipe.stages]
        for place, before in enumerate(begun):
            if place >= len(stages) or stages[place] != before:
                raise CheckpointError(
                    f"{folder} is the work of another recipe: its stage {before['stage']['name']} was begun in another "
                    "way; remove it, or name another folder"
                )

    def begin(self, stage: Stage) -> None:
        """Keep what a stage is: from now on it may not change, as later ones still may."""
        if len(self._found["begun"]) <= self._recipe.stages.index(stage):
            self._found["begun"].append(_begun(self._recipe, stage))
            self._write()

    def remember(self, key: str, find: Callable[[], Any]) -> None:
        """Find something out, unless it is known."""
        if key not in self._found["found"]:
            self._found["found"][key] = find()
            self._write()

    def recall(self, key: str) -> Any:
        """What was found out."""
        return self._found["found"][key]

    def save(self, language: LanguageModel, stage: str, state: str, found: Mapping[str, Any] | None = None) -> None:
        """Keep the model and what was found out of it at once; forget the one before, and how that one was learning."""
        before, name = self._found["at"], f"{stage}.{state}"
        save_language_model(language, self.folder / name)
        self._found["at"] = name
        self._found["found"].update(found or {})
        self._found["reached"].append(name)
        self._write()
        if before is not None:
            shutil.rmtree(self.folder / before)
        if state == "learnt":
            (self.folder / f"{stage}.state").unlink(missing_ok=True)

    def has(self, stage: str, state: str) -> bool:
        """Whether a stage has come so far."""
        return f"{stage}.{state}" in self._found["reached"]

    def latest(self) -> Path | None:
        """The folder of the model where it last stood; None at the beginning."""
        return None if self._found["at"] is None else self.folder / self._found["at"]

    def remove(self) -> None:
        """All of it, first what says that there is something to go on with."""
        self._file.unlink()
        shutil.rmtree(self.folder)

    def _write(self) -> None:
        write_bytes(self._file, (json.dumps(self._found) + "\n").encode())


def _source(recipe: Recipe) -> dict[str, Any]:
    """What every stage depends on."""
    found = recipe.model_dump(mode="json", include={"model", "dtype", "seed", "calibration", "healing"})
    found["healing"].pop("training")
    for part in (recipe.healing, recipe.calibration):
        if part is not None and part.text.exists():
            found[f"sha256 of {part.text.name}"] = sha256(part.text.read_bytes()).hexdigest()
    return found


def _begun(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What a stage depends on by itself."""
    training = recipe.training_of(stage).model_dump(mode="json")
    return {"stage": stage.model_dump(mode="json"), "training": training}
