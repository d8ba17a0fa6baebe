"""Pages of mapped weight files: held in memory only up to a limit, and read from the file again when they are used."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["file_pages_limited", "release_file_pages"]

# MADV_DONTNEED of Linux: the pages of a mapping leave this process, and those of an unchanged file are read again.
_DONTNEED = 4
_SUFFIX = ".safetensors"
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) +(/.*)")
# Seconds between two looks at the memory of the process.
_INTERVAL = 0.01


def release_file_pages() -> int:
    """Let go of the pages of mapped safetensors files that were read, without touching any tensor's numbers.

    A mapping of which a page was changed is left alone, since its file does not hold the change. Elsewhere than on
    Linux nothing is done; there the system takes such pages back by itself when memory is short.

    Returns:
        Number of bytes in the mappings that were released.

    Example:
        >>> release_file_pages() >= 0
        True
    """
    try:
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    released = 0
    span: tuple[int, int] | None = None
    for line in lines:
        header = _HEADER.match(line)
        if header is not None:
            start, end = int(header[1], 16), int(header[2], 16)
            span = (start, end - start) if header[4].removesuffix(" (deleted)").endswith(_SUFFIX) else None
        elif span is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0" and madvise(*span, _DONTNEED) == 0:
                released += span[1]
            span = None
    return released


@contextmanager
def file_pages_limited(size: int) -> Iterator[None]:
    """Keep at most about ``size`` bytes of mapped files in memory within this context, see :func:`release_file_pages`.

    Example:
        >>> with file_pages_limited(1 << 30):
        ...     pass
    """
    ended = threading.Event()
    release_file_pages()
    before = _of_files()  # libraries are mapped files as well
    if before is None:
        yield
        return

    def watch(limit: int) -> None:
        while not ended.wait(_INTERVAL):
            if (_of_files() or 0) > limit:
                release_file_pages()

    watcher = threading.Thread(target=watch, args=(before + size,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _of_files() -> int | None:
    """Resident bytes of mapped files; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssFile:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None
