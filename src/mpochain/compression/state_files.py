"""Files of a resumable compression: JSON with the hash of its content, and tensors in files named by their hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mpochain.checkpoint.elements import DTYPES
from mpochain.errors import OutputError
from mpochain.system.files import write_bytes
from mpochain.system.reading import read_bytes, sha256_of

__all__ = ["part_name", "part_of", "read_part", "read_sealed", "write_part", "write_sealed"]

# Largest file that is read, in bytes.
_LONGEST = 1 << 40

_VALUES = "values"


def write_sealed(file: Path, data: Mapping[str, Any]) -> None:
    """Write JSON data after the hash of its text.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(data)
    write_bytes(file, f"{sha256(text.encode()).hexdigest()}\n{text}\n".encode())


def read_sealed(file: Path) -> dict[str, Any] | None:
    """Read data of :func:`write_sealed`; None if the file is missing or damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_sealed(Path(folder, "run.json"), {"seed": 0})
        ...     read_sealed(Path(folder, "run.json")), read_sealed(Path(folder, "other.json"))
        ({'seed': 0}, None)
    """
    try:
        seal, _, text = read_bytes(file, _LONGEST).decode().partition("\n")
        text = text.removesuffix("\n")
        data = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    return data if sha256(text.encode()).hexdigest() == seal and isinstance(data, dict) else None


def write_part(folder: Path, key: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Write tensors and JSON values to a file whose name states the key and the hash of the content.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        data = safetensors.torch.save(_separate(stored), metadata={_VALUES: json.dumps(values)})
    except safetensors.SafetensorError as error:
        raise OutputError(f"cannot write to {folder}: {error}") from error
    file = folder / f"{part_name(key)}-{sha256(data).hexdigest()[:16]}.safetensors"
    write_bytes(file, data)
    for old in folder.glob(f"{part_name(key)}-*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)  # a damaged one
    return file


def part_of(folder: Path, key: str) -> Path | None:
    """The file of :func:`write_part` for a key; None if there is none."""
    return next(folder.glob(f"{part_name(key)}-*.safetensors"), None)


def read_part(file: Path, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a file of :func:`write_part`; None if it is missing or damaged.

    Args:
        file: the file.
        mapped: whether the tensors stay in the file, and are read where they are used.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = write_part(Path(folder), "model.up", {"x": torch.ones(2)}, {"rows": 3})
        ...     read_part(file)
        ({'x': tensor([1., 1.])}, {'rows': 3})
    """
    if mapped:
        return _mapped(file)
    try:
        data = read_bytes(file, _LONGEST)
        if sha256(data).hexdigest()[:16] != file.stem.rpartition("-")[2]:
            return None
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return safetensors.torch.load(data), json.loads(header["__metadata__"][_VALUES])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def _mapped(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A part whose tensors are mapped one by one.

    Those that safetensors maps share the memory of the whole file, as different types, which ``torch.save`` refuses.
    """
    if not file.exists() or sha256_of(file)[:16] != file.stem.rpartition("-")[2]:
        return None
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    values = json.loads(header.pop("__metadata__")[_VALUES])
    # Private, so that a tensor that is written to is copied and the file never changes; no descriptor stays open.
    storage = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if start == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        own = storage[8 + length + start : 8 + length + end]
        tensors[name] = torch.empty(0, dtype=dtype).set_(own).reshape(shape)
    return tensors, values


def part_name(key: str) -> str:
    """Start of the name of a file, for a key that may hold any character."""
    return sha256(key.encode()).hexdigest()[:16]


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors asks for."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        separate[name] = tensor.clone() if tensor.data_ptr() in seen and tensor.numel() else tensor
        seen.add(tensor.data_ptr())
    return separate
