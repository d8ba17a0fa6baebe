"""L-BFGS with a preconditioner, over several arrays at once (Nocedal, Math. Comp. 35, 1980)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpochain.arrays import Array
from mpochain.decomposition.metric import dot

__all__ = ["Objective", "minimize"]

# Steps that are remembered; one of which the error falls by less than the second number of itself is the last.
_MEMORY, _LEAST_GAIN = 10, 1e-7

# Of the fall that the slope promises, how much a step must bring (Armijo), and the shortest one that is tried.
_SUFFICIENT, _SHORTEST = 1e-4, 1e-6


class Objective(Protocol):
    """A squared error, and the place where it is looked at."""

    @property
    def arrays(self) -> list[Array]:
        """The place."""
        ...

    def place(self, arrays: Sequence[Array]) -> None:
        """Go there."""
        ...

    def error(self) -> float:
        """At the place."""
        ...

    def gradient(self) -> list[Array]:
        """Of half the error, at the place where it was asked for last."""
        ...

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """Nearly the inverse of the second derivative of half the error by each array alone, at the place."""
        ...


def minimize(objective: Objective, iterations: int) -> list[float]:
    """Improve the place; the error before and after each iteration, which never increases.

    Args:
        objective: is left at the best place.
        iterations: at most.

    Example:
        >>> import numpy as np
        >>> class Bowl:
        ...     def __init__(self):
        ...         self.arrays = [np.ones(2), np.ones(1)]
        ...     def place(self, arrays):
        ...         self.arrays = list(arrays)
        ...     def error(self):
        ...         return sum(float((each**2).sum()) for each in self.arrays)
        ...     def gradient(self):
        ...         return self.arrays
        ...     def preconditioner(self):
        ...         return lambda vector: vector
        >>> minimize(Bowl(), 5)
        [3.0, 0.0]
    """
    error = objective.error()
    gradient = objective.gradient()
    errors = [error]
    history: list[_Step] = []
    while len(errors) <= iterations and error > 0.0:
        direction = _direction(objective, gradient, history)
        slope = 2 * dot(gradient, direction)
        arrays = objective.arrays
        length = 1.0
        while slope < 0.0 and length >= _SHORTEST:
            objective.place(_moved(arrays, length, direction))
            reached = objective.error()
            if reached <= error + _SUFFICIENT * length * slope:
                break
            # The minimum of the parabola through both errors with this slope, kept away from the ends.
            lowest = -slope * length**2 / (2 * (reached - error - slope * length))
            length = min(max(lowest, 0.1 * length), 0.5 * length)
        else:
            objective.place(arrays)
            if not history:
                break
            history = []  # once more from the preconditioned gradient alone
            continue
        before, gradient = gradient, objective.gradient()
        step, change = [length * each for each in direction], _moved(gradient, -1.0, before)
        curvature = dot(step, change)
        if curvature > 0.0:
            history = [*history[1 - _MEMORY :], _Step(step, change, 1 / curvature)]
        gain, error = error - reached, reached
        errors.append(error)
        if gain <= _LEAST_GAIN * error:
            break
    return errors


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of all arrays, by how much it changed the gradient, and the inverse of the product of both."""

    step: list[Array]
    change: list[Array]
    inverse: float


def _direction(objective: Objective, gradient: list[Array], history: Sequence[_Step]) -> list[Array]:
    """The two loops around the preconditioner."""
    precondition = objective.preconditioner()
    vector, factors = gradient, []
    for each in reversed(history):
        factor = each.inverse * dot(each.step, vector)
        factors.append(factor)
        vector = _moved(vector, -factor, each.change)
    if history:
        last = history[-1]
        scale = 1 / (last.inverse * dot(last.change, precondition(last.change)))
    else:
        scale = 2 / len(gradient)  # each array alone would be moved to its best, all of them too far
    vector = [scale * each for each in precondition(vector)]
    for each, factor in zip(history, reversed(factors), strict=True):
        vector = _moved(vector, factor - each.inverse * dot(each.change, vector), each.step)
    return [-each for each in vector]


def _moved(arrays: Sequence[Array], length: float, direction: Sequence[Array]) -> list[Array]:
    return [array + length * each for array, each in zip(arrays, direction, strict=True)]
