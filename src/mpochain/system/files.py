"""Atomic writes of single files, and a check that a folder is writable.

A process killed at any moment leaves either the old or the new file. What it left of a half-written one is removed by
the next write of the same file.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path

from mpochain.errors import OutputError
from mpochain.system.faults import output_errors
from mpochain.system.locks import is_locked_elsewhere, lock_descriptor
from mpochain.system.paths import require_path

__all__ = ["make_durable", "remove_dead_partials", "require_writable", "sync_folder", "write_bytes"]

# A half-written file; its writer holds a lock on it, so that others see that it lives.
_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.mpochain-partial", re.DOTALL)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, by a temporary file in the same folder and a rename.

    The file has the permissions that the umask gives, and is on the disk when the function returns.

    Raises:
        OutputError: the file cannot be written; an older one is intact.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, descriptor = _open_partial(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                # Renamed before it is closed, which ends the lock.
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        remove_dead_partials(path.parent, path.name)


def _open_partial(path: Path) -> tuple[Path, int]:
    """Create and lock a partial file."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.mpochain-partial")
        # tempfile would create a file that only its owner can read.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            # Another process may take it for a dead one before it is locked.
            if lock_descriptor(descriptor) is not False and os.fstat(descriptor).st_nlink:
                return partial, descriptor
        except BaseException:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def remove_dead_partials(folder: Path, name: str | None = None) -> None:
    """Remove the half-written files of dead processes.

    Args:
        folder: where they are.
        name: the name of the file that was to be written; None for all.
    """
    for file in folder.iterdir():
        match = _PARTIAL.fullmatch(file.name)
        if match and name in (None, match["name"]) and not is_locked_elsewhere(file):
            file.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a power cut does not undo a rename."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # a folder that may be written but not read, or Windows, where folders cannot be opened
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # there is nothing to sync
            raise
    finally:
        os.close(descriptor)


def make_durable(folder: Path) -> None:
    """Give the files of a new folder the permissions of any new file, and write them to the disk."""
    probe = folder / f".{secrets.token_hex(8)}"
    with probe.open("xb") as file:
        permissions = os.fstat(file.fileno()).st_mode & 0o777
    probe.unlink()
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY)  # noqa: PTH118  # os.walk gives strings
            try:
                # Some libraries create files that only their owner can read.
                if os.fstat(descriptor).st_mode & 0o777 != permissions:
                    os.fchmod(descriptor, permissions)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


def require_writable(folder: Path) -> Path:
    """Create ``folder`` if needed, and check that files can be written there, before any long work.

    Raises:
        OutputError: the folder cannot be created or written.
        ArgumentError: no folder can have this path.
    """
    if require_path(folder).exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe, descriptor = _open_partial(folder / "write-test")
        os.close(descriptor)
        probe.unlink(missing_ok=True)
        remove_dead_partials(folder, "write-test")
    return folder
