"""Tensors of a training state in one file per process, which any number of processes reads (torch's DCP).

The files are safetensors; torch's own format of distributed checkpoints holds a pickle.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mpochain.distributed import team_of_group
from mpochain.errors import CheckpointError, OutputError

__all__ = ["read_shards", "remove_shards", "shapes_of_shards", "shard_folders", "verify_shards", "write_shards"]


def shard_folders(path: Path) -> tuple[Path, Path]:
    """The two folders that hold the shards of a state in turn, so that the last ones stay until the next are complete.

    Example:
        >>> [folder.name for folder in shard_folders(Path("run.state"))]
        ['run.state.shards-0', 'run.state.shards-1']
    """
    first, second = (path.with_name(f"{path.name}.shards-{number}") for number in range(2))
    return first, second


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write the shards of this process, and in one of them what all processes have, to an emptied folder.

    Args:
        folder: the same in all processes, which all see it and call this.
        tensors: tensors by name, plain or sharded.

    Returns:
        The SHA-256 of each file, by its name.

    Raises:
        OutputError: a file cannot be written; the same error in all processes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    team = team_of_group()
    with team.together():
        if team.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir()
            except OSError as error:
                raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        first = next(iter(error.failures.values()), (error,))[0]
        raise OutputError(f"{folder} cannot be written: {first}") from error
    return _hashes(folder)


def verify_shards(folder: Path, hashes: Mapping[str, str], *, together: bool) -> None:
    """Compare the SHA-256 of files with those that a state names; the processes share the files.

    Args:
        folder: the folder.
        hashes: SHA-256 by file name.
        together: whether all processes of the group call this.

    Raises:
        CheckpointError: a file is missing or damaged; in all processes.
    """
    stored = _hashes(folder, together=together)
    for name in sorted(hashes):
        if stored.get(name) != hashes[name]:
            what = "is missing" if name not in stored else "does not have the SHA-256 that its state names"
            raise CheckpointError(f"{folder / name} {what}; remove the state to start again")


def shapes_of_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder of shards, on the meta device, by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    described = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(value.size, dtype=value.properties.dtype, device="meta")
        for name, value in described.items()
        if isinstance(value, TensorStorageMetadata)
    }


def read_shards(folder: Path, targets: Mapping[str, Tensor], *, together: bool) -> None:
    """Fill tensors with those in a folder of shards, in place.

    Args:
        folder: the folder.
        targets: tensors by name, plain or sharded, of the shapes and types that were written.
        together: whether all processes of the group call this, as they must for sharded tensors.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        # It says that a single process reads, which is asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not together)


def remove_shards(path: Path, *, keep: Path | None = None) -> None:
    """Remove the shards of earlier states of a path.

    Example:
        >>> remove_shards(Path("nowhere.state"))
    """
    for folder in shard_folders(path):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _hashes(folder: Path, *, together: bool = True) -> dict[str, str]:
    """The SHA-256 of each file in a folder, computed by the processes in turn."""
    team = team_of_group(together=together)
    hashes = {}
    with team.together():
        files = sorted(folder.glob("*.safetensors"))
        for number, file in enumerate(files, start=1):
            if team.works_on(number):
                with file.open("rb") as opened:
                    hashes[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return {name: value for part in team.gathered(hashes) for name, value in part.items()}
