"""Allocation of a budget among layers: the choice of each layer that reduces the total error most for its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import ArgumentError

__all__ = ["Curve", "allocate", "best_at_price", "cheapest_within", "frontier", "largest_error", "uniform"]

_BISECTIONS = 200


@dataclass(frozen=True, eq=False)
class Curve:
    """Costs and errors of the choices of one layer.

    One cost, or several at fixed prices: ``Choices.curve({"bytes": 1.0, "macs": 0.01})`` of
    :class:`mpochain.compression.Choices` is the weighted sum of two.

    Attributes:
        costs: ``(n,)`` of each choice, such as parameters or bytes; int64, or float64 for a weighted sum.
        errors: ``(n,)``, float64, what each choice adds to the loss or another sum over layers, in one unit for all.
        zero_error: error of the zero matrix in the same unit; None if it is unknown.
    """

    costs: NDArray[Any]
    errors: NDArray[Any]
    zero_error: float | None = None

    def __post_init__(self) -> None:
        costs, errors = np.asarray(self.costs), np.asarray(self.errors, dtype=np.float64)
        costs = costs.astype(np.float64 if costs.dtype.kind == "f" else np.int64)
        if costs.ndim != 1 or costs.shape != errors.shape or not costs.size:
            raise ArgumentError(f"a curve has as many costs as errors, got {costs.shape} and {errors.shape}")
        finite = np.isfinite(errors).all() and np.isfinite(costs).all()
        if not finite or (errors < 0).any() or (costs < 0).any():
            raise ArgumentError("the costs and errors of a curve must be finite and not negative")
        object.__setattr__(self, "costs", costs)
        object.__setattr__(self, "errors", errors)


def best_at_price(curve: Curve, price: float) -> int:
    """The choice that minimises ``error + price * cost``; the cheapest of equally good ones.

    Args:
        curve: of one layer; with several costs at prices of their own, ``price`` is 1.
        price: of a unit of cost, in units of the error.

    Example:
        >>> curve = Curve(np.array([0, 10, 20]), np.array([9.0, 1.0, 0.0]))
        >>> [best_at_price(curve, price) for price in (0.0, 0.2, 1.0)]
        [2, 1, 0]
    """
    total = curve.errors + price * curve.costs
    ties = np.flatnonzero(total == total.min())
    return int(ties[np.argmin(curve.costs[ties])])


def allocate(curves: Mapping[str, Curve], budget: float) -> dict[str, int]:
    """One choice for each layer, such that the errors sum to little and the costs to at most ``budget``.

    Minimises ``error + price * cost`` at the lowest price that the budget allows, which is optimal for the cost that
    these choices have together, for curves of any form (Lagrange multipliers; Everett 1963). What is left of the
    budget, less than a step of one layer, then goes to the layers that gain most from it.

    Args:
        curves: of each layer.
        budget: the most that all choices together may cost, in the unit of the costs.

    Returns:
        The number of the choice of each layer.

    Raises:
        ArgumentError: no layers, or a budget that even the cheapest choices exceed.

    Example:
        >>> steep = Curve(np.array([0, 10, 20]), np.array([9.0, 1.0, 0.0]))
        >>> flat = Curve(np.array([0, 10, 20]), np.array([2.0, 1.0, 0.0]))
        >>> allocate({"a": steep, "b": flat}, 20)
        {'a': 1, 'b': 1}
    """
    if not curves:
        raise ArgumentError("there is no layer to share a budget among")
    least = sum(curve.costs.min().item() for curve in curves.values())
    if least > budget:
        raise ArgumentError(
            f"the smallest choices of all layers cost {least:,} together, more than the budget {budget:,}"
        )

    def choices(price: float) -> dict[str, int]:
        return {name: best_at_price(curve, price) for name, curve in curves.items()}

    def cost(chosen: Mapping[str, int]) -> float:
        return sum(curves[name].costs[choice].item() for name, choice in chosen.items())

    best = choices(0.0)
    if cost(best) > budget:
        # At a price over every error for one unit of cost the cheapest choices win.
        low, high = 0.0, 2.0 * max(float(curve.errors.max()) for curve in curves.values()) + 1.0
        while cost(choices(high)) > budget:
            high *= 2.0  # differences of costs may be fractions of a unit
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2 if low else high / 2
            low, high = (middle, high) if cost(choices(middle)) > budget else (low, middle)
            if high - low <= 1e-12 * high:
                break
        best = choices(high)
    return _filled(curves, best, budget - cost(best))


def uniform(curves: Mapping[str, Curve], budget: float) -> dict[str, int]:
    """The largest choice of each layer within the same share of its dense cost, that of its last choice.

    Args:
        curves: of each layer; costs ascending, the last that of the dense layer.
        budget: the most that all choices together may cost.

    Raises:
        ArgumentError: a layer whose smallest choice is larger.

    Example:
        >>> curve = Curve(np.array([10, 40, 50, 100]), np.array([3.0, 2.0, 1.0, 0.0]))
        >>> uniform({"up": curve, "down": curve}, 100)
        {'up': 2, 'down': 2}
    """
    total = sum(curve.costs[-1].item() for curve in curves.values())
    chosen = {}
    for name, curve in curves.items():
        fitting = np.flatnonzero(curve.costs <= curve.costs[-1].item() * budget / total)
        if not fitting.size:
            raise ArgumentError(f"{name} cannot be made as small as {budget / total:.1%} of its parameters; allow more")
        chosen[name] = int(fitting[-1])
    return chosen


def frontier(curves: Mapping[str, Curve]) -> tuple[tuple[float, float], ...]:
    """Tenths of the dense cost that can be reached, and the sum of the errors at each.

    Example:
        >>> curve = Curve(np.array([5, 10]), np.array([1.0, 0.0]))
        >>> frontier({"up": curve})
        ((0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.8, 1.0), (0.9, 1.0), (1.0, 0.0))
    """
    total = sum(int(curve.costs[-1]) for curve in curves.values())
    points = []
    for tenths in range(1, 11):
        try:
            chosen = allocate(curves, total * tenths // 10)
        except ArgumentError:
            continue  # smaller than the smallest choices
        points.append((tenths / 10, sum(float(curves[name].errors[choice]) for name, choice in chosen.items())))
    return tuple(points)


def cheapest_within(curves: Mapping[str, Curve], error: float) -> dict[str, int]:
    """The cheapest choice of each layer whose relative error is within a limit.

    Args:
        curves: of each layer, with ``zero_error``.
        error: limit of the root of a choice's error over that of the zero matrix.

    Raises:
        ArgumentError: a layer whose errors are unknown, or without a choice within the limit.

    Example:
        >>> cheapest_within({"up": Curve(np.array([1, 2, 3]), np.array([0.5, 0.04, 0.0]), zero_error=1.0)}, 0.2)
        {'up': 1}
    """
    chosen = {}
    for name, curve in curves.items():
        if curve.zero_error is None:
            raise ArgumentError(
                f"the errors of {name} are unknown before it is built; give a share or a size in place of an error, or "
                "another method"
            )
        # A choice exactly at the limit must pass, whatever the rounding of sums of squares.
        within = np.flatnonzero(curve.errors <= error**2 * curve.zero_error * (1 + 1e-9))
        if not within.size:
            raise ArgumentError(f"no choice for {name} is within an error of {error}; allow more")
        chosen[name] = int(within[np.argmin(curve.costs[within])])
    return chosen


def largest_error(curves: Mapping[str, Curve], chosen: Mapping[str, int]) -> float:
    """The largest relative error of any layer, relative as in :func:`cheapest_within`.

    Example:
        >>> largest_error({"up": Curve(np.array([1, 2]), np.array([0.5, 0.04]), zero_error=1.0)}, {"up": 1})
        0.2
    """
    squares = [
        curves[name].errors[choice] / zero for name, choice in chosen.items() if (zero := curves[name].zero_error)
    ]
    return float(np.sqrt(max(squares, default=0.0)))


def _filled(curves: Mapping[str, Curve], chosen: dict[str, int], left: float) -> dict[str, int]:
    """Spend what is left of a budget, the largest fall of the error for its cost first."""
    while True:
        steps = []
        for name, choice in chosen.items():
            curve = curves[name]
            extra, gain = curve.costs - curve.costs[choice], curve.errors[choice] - curve.errors
            affordable = np.flatnonzero((extra > 0) & (extra <= left) & (gain > 0))
            if affordable.size:
                step = affordable[np.argmax(gain[affordable] / extra[affordable])]
                steps.append((float(gain[step] / extra[step]), name, int(step), extra[step].item()))
        if not steps:
            return chosen
        _, name, step, spent = max(steps)
        chosen[name] = step
        left -= spent
