"""Batch sizes of plans: validation, and rounding to a power of two."""

from __future__ import annotations

import operator
from typing import Any

from mpochain.errors import ArgumentError

__all__ = ["batch_bucket", "check_batch"]


def batch_bucket(batch: int) -> int:
    """The smallest power of two at or above ``batch``; one plan serves all batches of such a bucket.

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
