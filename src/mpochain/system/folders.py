"""Folders whose files change together, and that one process writes at a time.

The new files are written to a staging folder within the folder. Then, where the system can exchange two folders in one
step (Linux, on most file systems), the folder is exchanged with one that has the new files and those that stay. Where
it cannot (other systems, the root of a disk, a folder with thousands of other files, a parent that may not be
written), the staging folder is renamed to a fixed name, which makes it valid, and its files are moved to their places
one by one; if the process is killed meanwhile, the next one that reads or writes the folder moves the rest.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mpochain.errors import MPOError, OutputError
from mpochain.system.commit import COMMITTED, LOCK, STAGING, exchanged, finish, is_folder, move, remove
from mpochain.system.faults import output_errors
from mpochain.system.files import make_durable, remove_dead_partials
from mpochain.system.locks import locked
from mpochain.system.paths import require_path

__all__ = ["folder_lock", "read_unchanged", "replaced_together", "settle"]

# How often a folder is read again that another process replaces.
_MOST_READS = 5
# Seconds after which the staging folder of a process that cannot be seen, as there are no locks, is a stray.
_OLD = 24 * 3600
Result = TypeVar("Result")
# Staging folders of this process: it may save within a save.
_active: set[str] = set()


@contextmanager
def folder_lock(folder: Path, *, wait: float = 0.0) -> Iterator[bool]:
    """Be the only process that writes to a folder, which is created if needed.

    A folder that was created, and is empty at the end, is removed.

    Args:
        folder: the folder.
        wait: how long to wait for another process, in seconds.

    Yields:
        Whether there is a lock; False where the file system has none.

    Raises:
        OutputError: another process or thread writes to the folder, or it cannot be created or written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     with folder_lock(Path(parent) / "out"):
        ...         inside = (Path(parent) / "out").exists()
        ...     inside, (Path(parent) / "out").exists()
        (True, False)
    """
    folder = require_path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder")
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, folder, wait=wait) as real:
            with output_errors(folder):
                finish(folder)
            yield real
    finally:
        for place in created:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def replaced_together(
    folder: Path, *, outdated: Callable[[str], bool] = lambda _: False, wait: float = 10.0
) -> Iterator[Path]:
    """Yield an empty folder; what is written there replaces files of the same name in ``folder``, all in one step.

    If the block raises an error, or the process is killed, the folder stays as it was. All other files stay, except
    outdated ones and those that a killed process left half-written. The files get the permissions that the umask gives,
    and are on the disk before older ones are removed.

    Args:
        folder: created if needed.
        outdated: whether a file or subfolder of this name is removed, unless a new one replaces it.
        wait: how long to wait for another process that writes to the folder, in seconds.

    Raises:
        OutputError: the folder cannot be written, or another process writes to it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     folder = Path(parent) / "out"
        ...     for text in ("old", "new"):
        ...         with replaced_together(folder) as new:
        ...             _ = (new / "a.txt").write_text(text)
        ...     (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('new', 1)
    """
    folder = folder.resolve()
    with folder_lock(folder, wait=wait) as real, output_errors(folder):
        _remove_strays(folder, real=real)
        staging = folder / f"{STAGING}{secrets.token_hex(8)}"
        _active.add(staging.name)
        try:
            staging.mkdir()
            yield staging
            make_durable(staging)
            if not exchanged(staging, folder, outdated, real=real, active=_active):
                move(staging, folder, outdated)
            _remove_strays(folder, real=real)
        finally:
            _active.discard(staging.name)
            shutil.rmtree(staging, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish the change of a folder by a process that was killed in the middle; call it before reading.

    Raises:
        OutputError: the folder cannot be written.
    """
    if is_folder(folder / COMMITTED):
        with folder_lock(folder, wait=10.0):
            pass


def read_unchanged(folder: Path, read: Callable[[], Result]) -> Result:
    """Read several files of a folder that another process may replace meanwhile; read again if it did.

    Args:
        folder: need not exist, or be a folder.
        read: reads everything.

    Raises:
        OutputError: the folder changes all the time, or a change of it that was interrupted cannot be finished.
        MPOError: what ``read`` raises.
    """
    require_path(folder)
    for _ in range(_MOST_READS):
        settle(folder)
        before = _state(folder)
        try:
            result = read()
        except (MPOError, OSError):
            if _state(folder) == before:
                raise
            continue
        if _state(folder) == before:
            return result
    raise OutputError(f"{folder} was replaced {_MOST_READS} times while it was read; wait until nobody writes to it")


def _state(folder: Path) -> list[object]:
    """Numbers that change when the files of a folder are replaced."""
    numbers: list[object] = []
    for place in (folder, folder / "config.json", folder / COMMITTED):
        try:
            status = place.stat()
            numbers += [status.st_dev, status.st_ino]
            if place != folder:  # whose time changes with every lock
                numbers += [status.st_mtime_ns, status.st_size]
        except OSError:
            numbers.append(None)
    return numbers


def _remove_strays(folder: Path, *, real: bool) -> None:
    """Remove what killed processes left.

    Who holds the lock of the folder is the only living one. Without locks, only what is old enough is removed.
    """
    strays = [entry for entry in folder.iterdir() if entry.name.startswith(STAGING) and entry.name not in _active]
    with suppress(PermissionError):  # a parent that may not be read has none
        strays += [entry for entry in folder.parent.iterdir() if entry.name.startswith(f".{folder.name}{STAGING}")]
    for entry in strays:
        with suppress(FileNotFoundError):
            if real or time.time() - entry.stat().st_mtime > _OLD:
                remove(entry)
    remove_dead_partials(folder)
