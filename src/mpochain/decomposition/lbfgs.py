"""Preconditioned L-BFGS over several arrays at once (Nocedal, Math. Comp. 35, 1980)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpochain.arrays import Array
from mpochain.decomposition.metric import dot

__all__ = ["Objective", "minimize"]

# Number of steps in the history.
_MEMORY = 10

# The iteration stops once a step reduces the error by less than this share.
_LEAST_GAIN = 1e-7

# Least share of the decrease predicted by the slope that a step must achieve (Armijo), and the shortest step tried.
_SUFFICIENT, _SHORTEST = 1e-4, 1e-6


class Objective(Protocol):
    """A squared error as a function of several arrays, evaluated at a current point."""

    @property
    def arrays(self) -> list[Array]:
        """The current point."""
        ...

    def move_to(self, arrays: Sequence[Array]) -> None:
        """Replace the current point."""
        ...

    def error(self) -> float:
        """The squared error at the current point."""
        ...

    def gradient(self) -> list[Array]:
        """Gradient of half the error with respect to each array, at the point of the last call of :meth:`error`."""
        ...

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """Approximate inverse Hessian of half the error at the current point, block diagonal over the arrays."""
        ...


def minimize(objective: Objective, iterations: int) -> list[float]:
    """Minimise an objective, and return the error at the start and after each iteration, which never increases.

    Args:
        objective: the objective; afterwards at the best point.
        iterations: largest number of iterations.

    Example:
        >>> import numpy as np
        >>> class Bowl:
        ...     def __init__(self):
        ...         self.arrays = [np.ones(2), np.ones(1)]
        ...     def move_to(self, arrays):
        ...         self.arrays = list(arrays)
        ...     def error(self):
        ...         return sum(float((array**2).sum()) for array in self.arrays)
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
            objective.move_to(_moved(arrays, length, direction))
            reached = objective.error()
            if reached <= error + _SUFFICIENT * length * slope:
                break
            # The minimum of the parabola through both errors with this slope, clipped away from both ends.
            lowest = -slope * length**2 / (2 * (reached - error - slope * length))
            length = min(max(lowest, 0.1 * length), 0.5 * length)
        else:
            objective.move_to(arrays)
            if not history:
                break
            history = []  # try again along the preconditioned gradient alone
            continue
        before, gradient = gradient, objective.gradient()
        step, change = [length * part for part in direction], _moved(gradient, -1.0, before)
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
    """A step of all arrays, the change of the gradient along it, and one over the inner product of both."""

    step: list[Array]
    change: list[Array]
    inverse: float


def _direction(objective: Objective, gradient: list[Array], history: Sequence[_Step]) -> list[Array]:
    """Descent direction by the two-loop recursion around the preconditioner."""
    precondition = objective.preconditioner()
    vector, factors = gradient, []
    for past in reversed(history):
        factor = past.inverse * dot(past.step, vector)
        factors.append(factor)
        vector = _moved(vector, -factor, past.change)
    if history:
        last = history[-1]
        scale = 1 / (last.inverse * dot(last.change, precondition(last.change)))
    else:
        # Full steps would move every array to its own optimum, which together overshoots.
        scale = 2 / len(gradient)
    vector = [scale * part for part in precondition(vector)]
    for past, factor in zip(history, reversed(factors), strict=True):
        vector = _moved(vector, factor - past.inverse * dot(past.change, vector), past.step)
    return [-part for part in vector]


def _moved(arrays: Sequence[Array], length: float, direction: Sequence[Array]) -> list[Array]:
    return [array + length * part for array, part in zip(arrays, direction, strict=True)]
