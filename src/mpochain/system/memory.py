"""Resident memory of this process: its peak, and giving freed arrays back to the system."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["freed_memory_returned", "peak_resident"]

# Parameters of glibc's mallopt, by its header malloc.h: from how many bytes on an array has a mapping of its own, which
# glibc otherwise raises to the second number by and by.
_MMAP_THRESHOLD = -3
_SMALL, _USUAL = 1 << 19, 1 << 25


def peak_resident() -> int | None:
    """The most memory that this process has had so far, libraries and all, in bytes; None where nobody tells.

    Example:
        >>> (peak_resident() or 1 << 30) > 1 << 20
        True
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found << 10


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Arrays of half a megabyte and more are given back to the system as soon as they are let go; with glibc only.

    Its heap cannot always use again what is freed between arrays that stay: in calibrating SmolLM2 a fifth of the
    process was such holes. A page that is given back must be cleared when it is asked for again, which takes time.

    Example:
        >>> with freed_memory_returned():
        ...     pass
    """
    glibc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if glibc is None:
        yield
        return
    glibc.malloc_trim(0)
    glibc.mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        glibc.mallopt(_MMAP_THRESHOLD, _USUAL)
