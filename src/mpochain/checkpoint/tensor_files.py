"""Files of tensors, named by their hashes: one, or several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mpochain.surgery.tying import address_of
from mpochain.system.files import write_bytes
from mpochain.system.reading import sha256_of

__all__ = ["index_bytes", "tensors_name", "without_shared_memory", "write_index", "write_tensors"]


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, largest: int | None = None) -> tuple[str, str]:
    """Write tensors to an empty folder.

    Args:
        tensors: by name.
        folder: the folder.
        largest: bytes of the tensors in one file; None for one file of any size. A larger tensor has a file of its own.

    Returns:
        Name and hash of the file, or of the index of several files.

    Raises:
        OSError: a file of tensors cannot be written, or a SafetensorError of the library that writes it.
        OutputError: the index cannot be written.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     name, sha256 = write_tensors({"a": torch.ones(2), "b": torch.ones(2)}, Path(folder), largest=8)
        ...     len(list(Path(folder).iterdir())), name == f"model-{sha256[:16]}.safetensors.index.json"
        (3, True)
    """
    files: dict[str, str] = {}
    hashes: dict[str, str] = {}
    partial = folder / "partial.safetensors"
    for part in _parts(tensors, largest):
        save_file(without_shared_memory(part), partial)
        sha256 = sha256_of(partial)
        name = tensors_name(sha256)
        partial.rename(folder / name)
        hashes[name] = sha256
        files |= dict.fromkeys(part, name)
    if len(hashes) == 1:
        return name, sha256
    return write_index(folder, files, hashes)


def write_index(folder: Path, files: Mapping[str, str], hashes: Mapping[str, str]) -> tuple[str, str]:
    """Write the index of several files.

    Args:
        folder: their folder.
        files: file of each tensor.
        hashes: hash of each file.

    Returns:
        Name and hash of the index.

    Raises:
        OutputError: the index cannot be written.
    """
    written = folder / "index"
    write_bytes(written, index_bytes(files, {"sha256": dict(hashes)}))
    sha256 = sha256_of(written)
    name = f"{tensors_name(sha256)}.index.json"
    written.rename(folder / name)
    return name, sha256


def tensors_name(sha256: str) -> str:
    """Name of the file of tensors with a hash."""
    return f"model-{sha256[:16]}.safetensors"


def index_bytes(files: Mapping[str, str], metadata: Mapping[str, Any] | None = None) -> bytes:
    """An index as transformers reads it: the file of each tensor."""
    return (json.dumps({"metadata": dict(metadata or {}), "weight_map": dict(files)}, indent=1) + "\n").encode()


def without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, which a file cannot hold: what overlaps another tensor is copied."""
    ends: dict[str, int] = {}
    starts: dict[str, int] = {}
    apart = {}
    for name, value in tensors.items():
        apart[name] = value.contiguous()
        start = address_of(apart[name])
        if start is not None:
            starts[name], ends[name] = start, start + apart[name].nbytes
    last = 0
    for name in sorted(starts, key=lambda name: (starts[name], -ends[name])):
        if starts[name] < last:
            apart[name] = apart[name].clone()
        else:
            last = ends[name]
    return apart


def _parts(tensors: Mapping[str, Tensor], largest: int | None) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, in parts of at most so many bytes."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors.items():
        if part and largest is not None and size + value.nbytes > largest:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    yield part
