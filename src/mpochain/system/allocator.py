"""The C library's allocator, told to keep what every training step frees and asks for again."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# Of mallopt(3), with the variables that set the same from outside.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
_TUNABLES, _PREFIX = "GLIBC_TUNABLES", "glibc.malloc."

_KEPT = 1 << 30
# The most that older versions take for blocks of their own.
_SMALLER = 32 << 20


def keep_freed_memory() -> bool:
    """Have this process keep up to 1 GiB that it has freed, rather than give it back and fault it in again.

    By default glibc returns blocks of tens of MiB at once, and most activations of a training step are of that size.
    For a process whose steps are all alike; it stays as large as its largest step.

    Returns:
        Whether it was done: not without glibc, and not where the environment says how glibc is to allocate.

    Source: mallopt(3).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    said = any(name in os.environ for name in _VARIABLES) or _PREFIX in os.environ.get(_TUNABLES, "")
    if said or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # This one first: setting any stops glibc from raising it by itself, and without it the other is worse than nothing.
    own_block = libc.mallopt(_MMAP_THRESHOLD, _KEPT) or libc.mallopt(_MMAP_THRESHOLD, _SMALLER)
    return bool(own_block and libc.mallopt(_TRIM_THRESHOLD, _KEPT))
