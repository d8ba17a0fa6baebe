"""Things to places: the best assignment, and a quick one that is nearly as good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_assignment", "greedy_assignment"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]


def best_assignment(scores: _Floats) -> _Order:
    """For each place a thing, so that the sum of the scores is as large as possible (Kuhn 1955).

    Seconds to minutes for some thousands of things whose scores are nearly alike.

    Args:
        scores: ``(things, places)``, as many of each.

    Example:
        >>> best_assignment(np.array([[2.0, 3.0], [0.0, 2.5]]))
        array([0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    things, places = linear_sum_assignment(scores, maximize=True)
    return np.asarray(things[np.argsort(places)], dtype=np.int64)


def greedy_assignment(scores: _Floats) -> _Order:
    """For each place a thing: again and again all pairs of which each is the other's best among what is left.

    The sum is at least half of the largest one where no score is negative, and the same where it is clear what belongs
    where; the time is that of some passes over the scores.

    Args:
        scores: ``(things, places)``, as many of each.

    Example:
        >>> greedy_assignment(np.array([[2.0, 3.0], [0.0, 2.5]]))
        array([1, 0])
    """
    count = len(scores)
    order = np.empty(count, dtype=np.int64)
    things, places = np.arange(count), np.arange(count)
    left = scores
    while len(things):
        place, thing = left.argmax(axis=1), left.argmax(axis=0)
        # The largest of all is always such a pair, so this ends.
        mutual = thing[place] == np.arange(len(things))
        order[places[place[mutual]]] = things[mutual]
        free = np.ones(len(places), dtype=bool)
        free[place[mutual]] = False
        things, places = things[~mutual], places[free]
        left = left[~mutual][:, free]
    return order
