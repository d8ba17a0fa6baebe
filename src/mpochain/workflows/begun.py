"""Results of an unfinished run that cannot be measured again later, with what identifies the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError
from mpochain.workflows.json_file import read_sealed_json, write_sealed_json

__all__ = ["Begun", "require_same"]


class Begun:
    """Results so far, in a JSON file.

    Args:
        file: read if it exists.
        identity: everything that the results depend on, ready for JSON.

    Attributes:
        kept: the results by key.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run; the message names the difference.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Begun(Path(folder) / "begun.json", {"text": "a"}).keep({"before": 2.0})
        ...     Begun(Path(folder) / "begun.json", {"text": "a"}).kept
        {'before': 2.0}
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self._file, self._identity = file, json.loads(json.dumps(dict(identity)))
        self.kept: dict[str, Any] = {}
        if file.exists():
            content = read_sealed_json(file)
            if set(content) != {"identity", "kept"}:
                raise CheckpointError(f"{file} is no record of an unfinished run; remove it to start again")
            require_same(file.parent, content["identity"], self._identity)
            self.kept = dict(content["kept"])

    def keep(self, results: Mapping[str, Any]) -> None:
        """Add results, ready for JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        self.kept.update(results)
        write_sealed_json(self._file, {"identity": self._identity, "kept": self.kept})


def require_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the first difference between what identified a run and what does now."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{folder} holds the state of another run: its {name} was {before.get(name)!r} and is now "
                f"{now.get(name)!r}; use that of the run, name another folder, or remove this one to start again"
            )
