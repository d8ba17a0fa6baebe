"""Paths that a user names: whether they exist, and what is wrong with them, in words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mpochain.errors import ArgumentError

__all__ = ["as_path", "exists", "file_problem", "reason", "require_path"]


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


def as_path(path: Path | str, name: str) -> Path:
    """A path given as text or as a path.

    Args:
        path: the value of an argument.
        name: the argument, for errors.

    Raises:
        ArgumentError: the value is of another kind.

    Example:
        >>> as_path(5, "folder")
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: folder must be a path, as str or pathlib.Path, got int
    """
    value: object = path
    if not isinstance(value, str | Path):
        raise ArgumentError(f"{name} must be a path, as str or pathlib.Path, got {type(value).__name__}")
    return Path(value)


def require_path(path: Path) -> Path:
    """Refuse a path that no file can have, such as one with a name that is too long for the system.

    Raises:
        ArgumentError: the path cannot exist.

    Example:
        >>> require_path(Path("x" * 5000))
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: xxx...: File name too long; name a shorter path
    """
    try:
        path.stat()
    except ValueError as error:
        raise ArgumentError(f"{str(path)!r} is no path: {error}; name another one") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ArgumentError(f"{path}: {reason(error)}; name a shorter path") from error
    return path


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
