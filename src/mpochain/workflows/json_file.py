"""JSON result files, replaced atomically; those of unfinished runs state the hash of their content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError
from mpochain.system.files import write_bytes
from mpochain.system.reading import read_bytes

__all__ = ["read_sealed_json", "write_json", "write_sealed_json"]

# Largest record that is read, in bytes.
_LONGEST = 256 << 20

_SEAL = "sha256"


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON: one field per line, text unescaped.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def write_sealed_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record with the hash of its content.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json(file, {**record, _SEAL: _hash(dict(record))})


def read_sealed_json(file: Path) -> dict[str, Any]:
    """Read a record of :func:`write_sealed_json`.

    Raises:
        CheckpointError: the file cannot be read, or its content does not have the hash that it states.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_sealed_json(Path(folder) / "run.json", {"seed": 0})
        ...     read_sealed_json(Path(folder) / "run.json")
        {'seed': 0}
    """
    try:
        record = json.loads(read_bytes(file, _LONGEST).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it to start again") from error
    if not isinstance(record, dict) or _SEAL not in record:
        raise CheckpointError(f"{file} is damaged: it states no hash of its content; remove it to start again")
    seal = record.pop(_SEAL)
    if seal != _hash(record):
        raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one it states; remove it to start again")
    return record


def _hash(record: dict[str, Any]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
