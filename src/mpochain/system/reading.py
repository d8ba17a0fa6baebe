"""Reading of untrusted files: only regular files, up to a given size, within a given folder.

Opening a named pipe or a device can block without end, so a file is opened without blocking and its type is checked
before anything is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["file_within", "open_regular", "read_bytes", "sha256_of"]


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; symbolic links are followed.

    Raises:
        OSError: the file cannot be opened, or is a folder, pipe, socket or device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, longest: int) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        longest: largest accepted size in bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.txt")
        ...     _ = file.write_text("text")
        ...     read_bytes(file, 4)
        b'text'
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Slightly more than its size, in case that it grows; a buffer of the largest size could be too large itself.
        data = file.read(size + 1) if size <= longest else b""
    if max(size, len(data)) > longest:
        raise OSError(errno.EFBIG, f"it is larger than {_size(longest)}", str(path))
    return data


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal; the file is read in pieces.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_within(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder, after symbolic links.

    Links may lead to other files of the folder. In the cache of the Hugging Face hub they may also lead to its
    ``blobs``, where the hub's client keeps the files of all its snapshots.

    Raises:
        OSError: the name leads out of the folder, by ``..``, an absolute path or a symbolic link.

    Example:
        >>> file_within(Path("/"), "a.txt").name
        'a.txt'
    """
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / name))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(path.is_relative_to(place) for place in allowed):
        raise OSError(errno.EACCES, f"it lies outside of the folder, at {path}", str(folder / name))
    return path


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count:,} bytes"
