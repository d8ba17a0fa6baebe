"""Atomic file writes, and a check that a folder is writable.

A process killed at any moment leaves either the old or the new file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mpochain.errors import OutputError

__all__ = ["require_writable", "write_bytes"]


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, by a temporary file in the same folder and a rename.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # tempfile would create a file that only its owner can read.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def require_writable(folder: Path) -> Path:
    """Create ``folder`` if needed, and check that files can be written there, before any long work.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    probe = folder / ".mpochain-write-test"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)  # another process may check the same folder at the same time
    return folder
