"""Name of this machine's processor, for measured times hold for one kind of machine only."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["processor"]


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
