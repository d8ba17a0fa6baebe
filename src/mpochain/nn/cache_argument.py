"""Argument ``cache=`` of the execution settings, with its deprecated spelling ``memory=``."""

from __future__ import annotations

import warnings
from typing import Literal

from mpochain.errors import ArgumentError

__all__ = ["Memory", "requested_cache"]

# Spellings of ``cache=False`` and ``cache=True`` before release 0.2.
Memory = Literal["compact", "fast"]


def requested_cache(cache: bool, memory: Memory | None) -> bool:
    """The value of ``cache=``, or the equivalent of the deprecated ``memory=``.

    Raises:
        ArgumentError: an unknown ``memory``, or one that contradicts ``cache``.

    Example:
        >>> requested_cache(True, None)
        True
    """
    if memory is None:
        return bool(cache)
    if memory not in ("compact", "fast"):
        raise ArgumentError(f"memory must be 'compact' or 'fast', got {memory!r}; use cache=False or cache=True")
    if cache and memory == "compact":
        raise ArgumentError("cache=True and memory='compact' contradict each other; give cache= alone")
    new = "cache=True" if memory == "fast" else "cache=False"
    # Attribute the warning to the user's line: skip this function and the method that calls it.
    warnings.warn(f"memory={memory!r} is deprecated; use {new}", DeprecationWarning, stacklevel=3)
    return memory == "fast"
