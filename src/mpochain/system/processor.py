"""Name of the processor, stored with measured times, and whether it multiplies bfloat16 natively."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

__all__ = ["multiplies_bfloat16", "processor"]

# Flags of processors in /proc/cpuinfo; without one of these, products of bfloat16 are slower than those of float32.
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "avx_bf16", "bf16"}


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


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; False if the system does not say.

    Example:
        >>> multiplies_bfloat16() in (True, False)
        True
    """
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                return not _BFLOAT16.isdisjoint(line.partition(":")[2].split())
    except OSError:
        pass
    return False
