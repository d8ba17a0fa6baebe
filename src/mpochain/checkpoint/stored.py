"""Tensors of a checkpoint: one safetensors file, or several with an index, opened without reading values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import safetensors
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from mpochain.checkpoint.configuration import CONFIG, LONGEST_JSON, Configuration
from mpochain.errors import CheckpointError
from mpochain.system.reading import file_within, read_bytes, sha256_of

__all__ = ["StoredTensors", "opened_files", "opened_tensors"]

_File = Annotated[str, Field(pattern=r"^model-[0-9a-f]{16}\.safetensors$")]


class _Hashes(BaseModel):
    sha256: dict[_File, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class _Index(BaseModel):
    """Index of several files: the hash of each file, and the file of each tensor."""

    metadata: _Hashes
    weight_map: dict[str, _File]


class StoredTensors:
    """Tensors of open safetensors files, by name.

    Args:
        files: the open files by the names of their tensors.
        intact: whether the files have the hashes that the configuration states.
    """

    def __init__(self, files: Mapping[str, Any], *, intact: bool = True) -> None:
        self._files = files
        self.intact = intact

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def get_slice(self, name: str) -> Any:
        """The tensor with its shape and element type, not read yet."""
        return self._files[name].get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        """The tensor, read."""
        value: Tensor = self._files[name].get_tensor(name)
        return value


@contextmanager
def opened_tensors(folder: Path, config: Configuration, *, damaged: bool = False) -> Iterator[StoredTensors]:
    """Open the tensors of a checkpoint, and compare their hashes with those that the configuration states.

    Args:
        folder: folder of the checkpoint.
        config: its configuration.
        damaged: whether files with other hashes are opened too.

    Raises:
        CheckpointError: a file is missing, damaged, cannot be read, is no regular file of the folder, or does not hold
            the tensors that the index states.
    """
    file = folder / config.tensors
    try:
        path = file_within(folder, config.tensors)
        intact = sha256_of(path) == config.sha256
        sharded = config.tensors.endswith(".json")
        if not intact and (sharded or not damaged):
            raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {CONFIG}")
        if not sharded:
            with opened_files([path]) as tensors:
                yield StoredTensors(tensors, intact=intact)
            return
        index = _index(path, file)
        paths = {name: file_within(folder, name) for name in index.metadata.sha256}
        odd = next((name for name, sha256 in index.metadata.sha256.items() if sha256_of(paths[name]) != sha256), None)
        if odd is not None and not damaged:
            raise CheckpointError(f"{folder / odd} is damaged: its sha256 is not the one in {config.tensors}")
        with opened_files(list(paths.values())) as tensors:
            differing = sorted(set(tensors) ^ set(index.weight_map))
            if differing and odd is None:
                names = ", ".join(differing[:3])
                raise CheckpointError(f"{file}: the files do not hold the tensors of the index: {names}")
            yield StoredTensors(tensors, intact=odd is None)
    except (safetensors.SafetensorError, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(f"{file} cannot be read: {reason}") from error


@contextmanager
def opened_files(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Open safetensors files; yield the open file of each tensor, by the tensor's name.

    Raises:
        SafetensorError: a file is damaged.
        OSError: a file cannot be read.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in paths:
            stored = stack.enter_context(safetensors.safe_open(path, framework="pt"))
            files.update(dict.fromkeys(stored.keys(), stored))
        yield files


def _index(path: Path, file: Path) -> _Index:
    try:
        return _Index.model_validate(json.loads(read_bytes(path, LONGEST_JSON).decode()))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as an index of tensors: {error}") from error
