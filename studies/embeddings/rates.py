"""The rate a form learns at: forms differ in it by more than tenfold."""

from __future__ import annotations

import math
from collections.abc import Callable

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def best_rate(loss: Callable[[float], float], *, first: tuple[float, float]) -> float:
    """The rate of ``LADDER`` beside which neither is better, reached from the better of two.

    Args:
        loss: after learning at a rate, on text that was not learned from, infinite where that failed; it is asked for
            the same rate again.
        first: where to begin, and where it ends if both fail.
    """
    best = min(first, key=loss)
    while math.isfinite(loss(best)):
        rate, place = best, LADDER.index(best)
        best = min(LADDER[max(place - 1, 0) : place + 2], key=loss)
        if best == rate:
            break
    return best
