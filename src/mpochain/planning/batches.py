"""Batch sizes of plans: their check, and the power of two that a plan serves."""

from __future__ import annotations

import operator
from typing import Any

from mpochain.errors import ArgumentError

__all__ = ["batch_bucket", "check_batch"]


def batch_bucket(batch: int) -> int:
    """The next power of two at or above ``batch``, at least 1: plans are made per bucket.

    Example:
        >>> [batch_bucket(n) for n in (0, 1, 3, 1024, 1025)]
        [1, 1, 4, 1024, 2048]
    """
    return 1 << max(batch - 1, 0).bit_length()


def check_batch(batch: Any) -> int:
    """``batch`` as an int.

    Raises:
        ArgumentError: not a positive integer.
    """
    try:
        number = operator.index(batch)
    except TypeError:
        number = 0
    if isinstance(batch, bool) or number < 1:
        raise ArgumentError(f"batch must be a positive integer, got {batch!r}")
    return number
