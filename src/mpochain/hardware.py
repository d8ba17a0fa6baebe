"""Which processor this is, for measured times hold for one kind of machine only, and what memory was taken of it."""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["peak_resident", "processor"]


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's own name where the system tells it, else its architecture.

    Example:
        >>> bool(processor())
        True
    """
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
