"""Pages of mapped weight files: held in memory only up to a limit, and read from the file again when they are used."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["file_pages_limited", "mapped_files", "release_file_pages"]

# MADV_DONTNEED of Linux: the pages of a mapping leave this process, and those of an unchanged file are read again.
_DONTNEED = 4
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(/.*)")
# Seconds between two looks at the memory of the process.
_INTERVAL = 0.01
# Limits of the contexts that are entered; the last one holds.
_LIMITS: list[object] = []


def mapped_files(addresses: Collection[int]) -> set[Path]:
    """The files that are mapped at these addresses; none elsewhere than on Linux.

    Example:
        >>> mapped_files([])
        set()
    """
    files = set()
    for start, end, file, _, _ in _mappings() if addresses else ():
        if any(start <= address < end for address in addresses):
            files.add(Path(file))
    return files


def release_file_pages(places: Iterable[Path]) -> int:
    """Let go of the pages of mapped files that were read, without touching anything in them.

    A mapping of which a page was changed is left alone, since its file does not hold the change; no other thread may
    change one meanwhile. Elsewhere than on Linux nothing is done; there the system takes such pages back by itself
    when memory is short.

    Args:
        places: the files, or folders of files.

    Returns:
        Number of bytes that were in memory and released.

    Example:
        >>> release_file_pages([Path("/nowhere")])
        0
    """
    wanted = {str(place.resolve()) for place in places}
    released = 0
    for start, end, file, resident, changed in _mappings():
        path = file.removesuffix(" (deleted)")
        held = path in wanted or any(str(parent) in wanted for parent in Path(path).parents)
        if held and not changed and _dropped(start, end - start):
            released += resident
    return released


@contextmanager
def file_pages_limited(size: int, places: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Keep at most about ``size`` bytes of mapped files in memory within this context, see :func:`release_file_pages`.

    Of contexts within one another, the innermost holds.

    Args:
        size: bytes beyond those of the mapped files in memory at the start.
        places: gives the files, or folders of files, that are released.

    Example:
        >>> with file_pages_limited(1 << 30, lambda: [Path("/nowhere")]):
        ...     pass
    """
    ended, own = threading.Event(), object()
    release_file_pages(places())
    before = _of_files()  # libraries are mapped files as well
    if before is None:
        yield
        return

    def watch(limit: int) -> None:
        while not ended.wait(_INTERVAL):
            held = _of_files() or 0
            if _LIMITS[-1] is own and held > limit:
                # What is not released counts no more, such as libraries that were imported since. It is not measured
                # afterwards, when other threads may have read pages again.
                limit = held - release_file_pages(places()) + size

    _LIMITS.append(own)
    watcher = threading.Thread(target=watch, args=(before + size,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        _LIMITS.remove(own)


def _mappings() -> Iterator[tuple[int, int, str, int, bool]]:
    """Start, end and file of each mapping, its bytes in memory, and whether a page of it was changed."""
    try:
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    header, own, resident = None, 0, 0
    for line in lines:
        found_header = _HEADER.match(line)
        if found_header is not None:
            header, own, resident = found_header, 0, 0
        elif header is not None and line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif header is not None and line.startswith(("Anonymous:", "Swap:")):
            # Changed pages that are swapped out count as well. "Swap:" comes after "Anonymous:".
            own += int(line.split()[1])
            if line.startswith("Swap:"):
                yield int(header[1], 16), int(header[2], 16), header[3], resident, own > 0
                header = None


def _dropped(start: int, size: int) -> bool:
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(madvise(start, size, _DONTNEED) == 0)


def _of_files() -> int | None:
    """Resident bytes of mapped files; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssFile:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None
