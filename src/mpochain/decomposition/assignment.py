"""Linear assignment of items to slots: optimal and greedy algorithms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_assignment", "greedy_assignment"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]


def best_assignment(scores: _Floats) -> _Order:
    """The item for each slot, such that the sum of the scores is largest (Kuhn 1955).

    For some thousands of items with nearly equal scores this takes seconds to minutes.

    Args:
        scores: ``(items, slots)``, square.

    Example:
        >>> best_assignment(np.array([[2.0, 3.0], [0.0, 2.5]]))
        array([0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    items, slots = linear_sum_assignment(scores, maximize=True)
    return np.asarray(items[np.argsort(slots)], dtype=np.int64)


def greedy_assignment(scores: _Floats) -> _Order:
    """An item for each slot, by repeatedly matching all pairs whose score is the largest remaining for both.

    If no score is negative, the sum of the scores is at least half of the optimum. The run time is that of a few passes
    over the scores.

    Args:
        scores: ``(items, slots)``, square.

    Example:
        >>> greedy_assignment(np.array([[2.0, 3.0], [0.0, 2.5]]))
        array([1, 0])
    """
    count = len(scores)
    order = np.empty(count, dtype=np.int64)
    items, slots = np.arange(count), np.arange(count)
    remaining = scores
    while len(items):
        best_slot, best_item = remaining.argmax(axis=1), remaining.argmax(axis=0)
        # The pair with the largest score of all is always mutual, so the loop ends.
        mutual = best_item[best_slot] == np.arange(len(items))
        order[slots[best_slot[mutual]]] = items[mutual]
        free = np.ones(len(slots), dtype=bool)
        free[best_slot[mutual]] = False
        items, slots = items[~mutual], slots[free]
        remaining = remaining[~mutual][:, free]
    return order
