"""Exchange of two paths in one step, which Linux has and Python does not offer."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["exchange"]

# Of renameat2(2): paths relative to the current folder, and the flag to exchange them.
_CURRENT_FOLDER = -100
_EXCHANGE = 2


def exchange(first: Path, second: Path) -> bool:
    """Exchange two files or folders in one step; False where the system or the file system cannot.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     first, second = Path(folder) / "1", Path(folder) / "2"
        ...     _ = first.write_text("one"), second.write_text("two")
        ...     ("two" if exchange(first, second) else "one") == first.read_text()
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # an older C library
        return False
    return function(_CURRENT_FOLDER, os.fsencode(first), _CURRENT_FOLDER, os.fsencode(second), _EXCHANGE) == 0
