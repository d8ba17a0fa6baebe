"""glibc allocator settings for training loops, which free and allocate the same blocks at every step."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), and the environment variables with the same effect.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
_TUNABLES, _PREFIX = "GLIBC_TUNABLES", "glibc.malloc."

_KEPT = 1 << 30
# The largest mmap threshold that older glibc versions accept.
_SMALLER = 32 << 20


def keep_freed_memory() -> bool:
    """Make this process keep up to 1 GiB of freed memory, instead of returning it and page-faulting it in again.

    By default glibc returns blocks of tens of MiB immediately, and most activations of a training step have that size.
    Meant for processes whose steps are all alike; the process stays at the size of its largest step.

    Returns:
        True if the setting was changed; False without glibc, or if environment variables configure its allocator.

    Source: mallopt(3).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    configured = any(name in os.environ for name in _VARIABLES) or _PREFIX in os.environ.get(_TUNABLES, "")
    if configured or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # The mmap threshold comes first: setting any parameter stops glibc from adapting it, and a trim threshold alone is
    # worse than no setting.
    threshold_set = libc.mallopt(_MMAP_THRESHOLD, _KEPT) or libc.mallopt(_MMAP_THRESHOLD, _SMALLER)
    return bool(threshold_set and libc.mallopt(_TRIM_THRESHOLD, _KEPT))
