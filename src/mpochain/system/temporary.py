"""Temporary folders that do not outlive a killed process for long: the next one to ask removes them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
import weakref
from pathlib import Path

from mpochain.system.locks import lock_descriptor

__all__ = ["TemporaryFolder"]

_PREFIX = "mpochain-temporary-"
_NAME = re.compile(rf"{_PREFIX}\w{{8}}")
# Seconds after which a folder that nobody has locked is that of a dead process, and not one about to be locked.
_OLD = 60.0


class TemporaryFolder:
    """A folder in the place for temporary files (``TMPDIR``), removed with this object.

    The process holds a lock on it. A new one removes those of dead processes first.

    Attributes:
        path: the folder.

    Example:
        >>> folder = TemporaryFolder()
        >>> folder.path.is_dir(), folder.remove(), folder.path.exists()
        (True, None, False)
    """

    def __init__(self) -> None:
        _remove_dead()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        descriptor = None
        with contextlib.suppress(OSError):  # Windows cannot open folders
            descriptor = os.open(self.path, os.O_RDONLY)
            lock_descriptor(descriptor)
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor, os.getpid())

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        self._finalizer()


def _remove(path: Path, descriptor: int | None, process: int) -> None:
    if os.getpid() != process:
        return  # a forked process, whose parent still uses the folder
    shutil.rmtree(path, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _remove_dead() -> None:
    """Remove the folders of dead processes of this user."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if not _NAME.fullmatch(folder.name) or not mine or time.time() - status.st_mtime < _OLD:
                continue
            descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if lock_descriptor(descriptor):
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)
