"""The central core of a chain, which holds most of its numbers."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["central"]


def central(cores: Sequence[tuple[str, int]]) -> str:
    """Name of the largest core of a chain; of equal ones, that which is nearest to the middle.

    Args:
        cores: name and number of entries of each core, in the order of the chain.

    Example:
        >>> central([("first", 8), ("second", 32), ("third", 32), ("last", 8)])
        'second'
    """
    middle = (len(cores) - 1) / 2
    number = max(range(len(cores)), key=lambda k: (cores[k][1], -abs(k - middle)))
    return cores[number][0]
