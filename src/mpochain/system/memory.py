"""Memory of this process and machine: resident and available size, and immediate return of freed arrays."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["anonymous_resident", "available_memory", "freed_memory_returned", "limited_growth", "peak_resident"]

# M_MMAP_THRESHOLD of glibc's mallopt, from malloc.h: arrays of at least this many bytes get their own mapping.
_MMAP_THRESHOLD = -3
# The threshold inside freed_memory_returned, and the largest value to which glibc raises it on its own.
_SMALL, _USUAL = 1 << 19, 1 << 25


def peak_resident() -> int | None:
    """Peak resident memory of this process so far, in bytes, with libraries; None if it is not available.

    Example:
        >>> (peak_resident() or 1 << 30) > 1 << 20
        True
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10  # kibibytes, but bytes on macOS


def anonymous_resident() -> int:
    """Resident memory of this process without mapped files, in bytes; the peak where only that is available, or 0.

    Example:
        >>> anonymous_resident() >= 0
        True
    """
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return peak_resident() or 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int | None:
    """Memory that new arrays can take without swapping, in bytes; None if it is not available.

    Example:
        >>> (available_memory() or 1 << 30) > 1 << 20
        True
    """
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


@contextmanager
def limited_growth(size: int) -> Iterator[None]:
    """Let the process take at most ``size`` more bytes of address space within this context, where the system can.

    An allocation beyond that raises MemoryError, also within C code, which no other thread can interrupt. The limit
    holds for all threads, so the context should be short and the size generous.

    Example:
        >>> with limited_growth(1 << 33):
        ...     pass
    """
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limits = [limit for limit in (used + size, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    except (ImportError, OSError, ValueError):  # not on Windows; macOS has no such file
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Return arrays of 512 KiB and more to the operating system as soon as they are freed; glibc only.

    The heap cannot always reuse memory freed between arrays that remain: in the calibration of SmolLM2 a fifth of the
    process memory was such holes. The cost is that a returned page has to be cleared when it is allocated again.

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
