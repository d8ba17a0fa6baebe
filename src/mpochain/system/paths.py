"""Paths that a user names: whether they exist, and what is wrong with them, in words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["exists", "file_problem", "reason"]


def exists(path: Path | str) -> bool:
    """Whether a path exists; False for a name that the system does not allow, such as one that is too long.

    Example:
        >>> exists("."), exists("x" * 5000), exists("a" + chr(0))
        (True, False, False)
    """
    try:
        Path(path).stat()
    except (OSError, ValueError):
        return False
    return True


def file_problem(path: Path | str) -> str | None:
    """Why a path cannot be read as a regular file; None if it can be.

    Folders, devices and pipes are refused: a pipe would block, and a device may have no end.

    Example:
        >>> file_problem("nowhere.txt"), file_problem(".")
        ('there is no such file', 'it is a folder, not a file')
    """
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder, not a file"
        if not stat.S_ISREG(mode):
            return "it is no regular file but a device or pipe; write its content into a file"
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {reason(error)}"
    return None


def reason(error: Exception) -> str:
    """What the system says of a failed operation, without number and path.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "a.txt"))
        'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error)
