"""Locks between processes, which the kernel releases when their process ends.

A lock is a lock file that its holder has locked with ``flock``, and removes at the end. A killed process leaves an
empty lock file that nobody holds. Where the file system or the platform has no such locks, nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mpochain.errors import OutputError
from mpochain.system.faults import output_error

_HAS_LOCKS = find_spec("fcntl") is not None  # not on Windows

__all__ = ["is_locked_elsewhere", "lock_descriptor", "locked", "take_over"]

# flock on a file system without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_HELD_ELSEWHERE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_PAUSE = 0.02


@dataclass
class _Lock:
    """A lock of this process: its open lock file (None without locks), its thread, and how often it was taken."""

    descriptor: int | None
    thread: int
    depth: int = 1


_held: dict[Path, _Lock] = {}


def _forget_in_child() -> None:
    """Close the lock files that a forked process inherits, so that a lock ends with the process that took it."""
    for lock in _held.values():
        if lock.descriptor is not None:
            os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def locked(file: Path, subject: object, *, wait: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a lock file; a thread that holds it may take it again.

    Args:
        file: the lock file, created if needed and removed at the end.
        subject: what the lock protects, for messages.
        wait: how long to wait for another holder, in seconds.

    Yields:
        Whether there is a lock; False where the file system or the platform has none.

    Raises:
        OutputError: another process or thread holds the lock, or the lock file cannot be created.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, locked(Path(folder) / "lock", folder) as real:
        ...     (Path(folder) / "lock").exists()
        True
    """
    key = file.parent.resolve() / file.name
    lock, thread = _held.get(key), threading.get_ident()
    if lock is not None and lock.thread == thread:
        lock.depth += 1
    else:
        lock = _Lock(_acquire(key, subject, wait), thread)
        _held[key] = lock
    try:
        yield lock.descriptor is not None
    finally:
        lock.depth -= 1
        if not lock.depth and _held.get(key) is lock:
            del _held[key]
            _release(key, lock.descriptor)


def take_over(file: Path, descriptor: int) -> None:
    """Replace the open lock file of a held lock by another one, which now has its name."""
    lock = _held[file]
    old, lock.descriptor = lock.descriptor, descriptor
    if old is not None:
        os.close(old)


def lock_descriptor(descriptor: int) -> bool | None:
    """Lock an open file or folder without waiting; False if another holds it, None if there are no locks."""
    if not _HAS_LOCKS:
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _HELD_ELSEWHERE:
            return False
        raise
    return True


def is_locked_elsewhere(file: Path) -> bool:
    """Whether a living process has locked a file; True if that cannot be known, False if the file is gone."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return lock_descriptor(descriptor) is not True
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _acquire(file: Path, subject: object, wait: float) -> int | None:
    deadline = time.monotonic() + wait
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:  # the last holder removed the folder
            continue
        except OSError as error:
            raise output_error(file.parent, error) from error
        try:
            got = lock_descriptor(descriptor)
            if got and _names(file, descriptor):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            raise output_error(file.parent, error) from error
        os.close(descriptor)
        if got is None:
            file.unlink(missing_ok=True)
            return None
        # A lock on a file that its last holder has removed is worthless, so the next try follows at once.
        if got is False:
            if time.monotonic() >= deadline:
                raise OutputError(
                    f"another process is writing to {subject}; wait until it has finished, or name another place"
                )
            time.sleep(_PAUSE)


def _names(file: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _release(file: Path, descriptor: int | None) -> None:
    if descriptor is None:
        return
    try:
        # Removed while it is locked; who opens it meanwhile notices that the path names it no more.
        if _names(file, descriptor):
            file.unlink()
    except OSError:
        pass  # an empty lock file stays, which the next holder reuses
    finally:
        os.close(descriptor)
