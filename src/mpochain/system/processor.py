"""Name of the processor, stored with measured times."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["processor"]


@lru_cache(maxsize=1)
def processor() -> str:
    """Model name of the processor, or its architecture if the system reports no name.

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
