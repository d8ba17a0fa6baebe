"""File of a training state: how it is written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from mpochain.distributed import filled
from mpochain.errors import CheckpointError
from mpochain.surgery.fingerprint import fingerprint_of_data
from mpochain.system.files import write_bytes
from mpochain.system.reading import open_regular
from mpochain.train.shards import read_shards, shapes_of_shards, shard_folders, verify_shards

__all__ = ["StoredTensors", "checksum", "read_record", "read_state", "shards_of", "write_file"]

_FORMAT = {"format": "mpochain-training", "version": "2"}
# States of version 1 have no SHA-256, and do not tell from which weights their run started. Those of version 3 name a
# folder of shards.
_VERSIONS = ("1", _FORMAT["version"], "3")


@dataclass(frozen=True)
class StoredTensors:
    """Tensors of a training state.

    Attributes:
        tensors: by name; without numbers (on the meta device) if they are in shards.
        shards: the folder of the shards.
    """

    tensors: Mapping[str, Tensor]
    shards: Path | None = None

    def numbers(self, wanted: Mapping[str, tuple[str, Tensor]], *, together: bool) -> dict[str, Tensor]:
        """Stored tensors with the layout and device of others.

        Args:
            wanted: stored name, and a tensor of its shape and type, plain or sharded, by any name.
            together: whether the tensors are sharded over processes, which then all call this.
        """
        if self.shards is None:
            return {key: filled(like, self.tensors[name]) for key, (name, like) in wanted.items()}
        targets = {key: torch.empty_like(like, requires_grad=False) for key, (_, like) in wanted.items()}
        read_shards(self.shards, {wanted[key][0]: target for key, target in targets.items()}, together=together)
        return targets


def write_file(path: Path, tensors: Mapping[str, Tensor], record: str, shards: Mapping[str, str] | None = None) -> None:
    """Write the file of a state.

    Args:
        path: the file.
        tensors: all tensors, contiguous; none if they are in shards.
        record: record of the run, as JSON.
        shards: name of the folder of the shards, and the hashes of its files as JSON.

    Raises:
        OutputError: the file cannot be written; an older file stays intact.
    """
    metadata = _FORMAT if shards is None else {**_FORMAT, "version": "3", **shards}
    sha256 = checksum(tensors, record, shards)
    write_bytes(path, save(dict(tensors), metadata={**metadata, "record": record, "sha256": sha256}))


def checksum(tensors: Mapping[str, Tensor], record: str, shards: Mapping[str, str] | None = None) -> str:
    """SHA-256 of a state file's content: tensors with their names, shapes and dtypes, and the record as JSON."""
    described = [[[name, tensors[name]] for name in sorted(tensors)], record]
    return fingerprint_of_data(described if shards is None else [*described, dict(shards)])


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON record of a state file, without its tensors.

    Raises:
        CheckpointError: the file is not a readable training state.
    """
    try:
        open_regular(path).close()  # safetensors would wait for a pipe
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        kind, number = metadata.get("format"), metadata.get("version")
        if kind != _FORMAT["format"] or number not in _VERSIONS:
            raise CheckpointError(
                f"{path} is not a training state of version {' or '.join(_VERSIONS)}: its format is {kind!r} and its "
                f"version {number!r}; finish that run with the release that began it, or remove the file to start again"
            )
        record = json.loads(metadata["record"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: the record is not a JSON object; remove the file to start again")
    return {"start": None, "versions": None, **record} if number == "1" else record


def shards_of(path: Path) -> Path | None:
    """The folder of shards that a state names; None for one without, and for a file that cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            name = (file.metadata() or {}).get("shards")
    except (safetensors.SafetensorError, OSError):
        return None
    return next((folder for folder in shard_folders(path) if folder.name == name), None)


def read_state(path: Path, *, together: bool = False) -> tuple[dict[str, Any], StoredTensors]:
    """Read a state file: its record and its tensors.

    Args:
        path: the file.
        together: whether all processes of the group call this, so that each reads a part of the shards.

    Raises:
        CheckpointError: the file is damaged, or not a training state.
    """
    record = read_record(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
            metadata = file.metadata()
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    shards = {name: metadata[name] for name in ("shards", "files") if name in metadata} or None
    if metadata["version"] != "1" and checksum(tensors, metadata["record"], shards) != metadata.get("sha256"):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the SHA-256 that it states; remove it to start again"
        )
    if shards is None:
        return record, StoredTensors(tensors)
    folder = shards_of(path)
    if folder is None or tensors or metadata["version"] != "3" or "files" not in shards:
        raise CheckpointError(f"{path} is damaged: it names no folder of its shards; remove it to start again")
    verify_shards(folder, json.loads(shards["files"]), together=together)
    return record, StoredTensors(shapes_of_shards(folder), folder)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a training state ({error}); remove it to start again")
