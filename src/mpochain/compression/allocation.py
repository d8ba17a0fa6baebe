"""How a budget is shared among layers: where a parameter takes away the most error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import SpecError

__all__ = ["Curve", "allocate", "cheapest_within", "frontier", "largest_error", "uniform"]

_BISECTIONS = 200


@dataclass(frozen=True, eq=False)
class Curve:
    """What one layer can become.

    Attributes:
        costs: of each choice, such as parameters or bytes.
        errors: what each choice adds to the loss, in a unit that all layers share: a square of what is left out.
        whole: the same for leaving out all of the layer; None if nobody asks.
    """

    costs: NDArray[Any]
    errors: NDArray[Any]
    whole: float | None = None

    def __post_init__(self) -> None:
        costs, errors = np.asarray(self.costs, dtype=np.int64), np.asarray(self.errors, dtype=np.float64)
        if costs.ndim != 1 or costs.shape != errors.shape or not costs.size:
            raise SpecError(f"a curve has as many costs as errors, got {costs.shape} and {errors.shape}")
        if not np.isfinite(errors).all() or (errors < 0).any() or (costs < 0).any():
            raise SpecError("the costs and errors of a curve must be finite and not negative")
        object.__setattr__(self, "costs", costs)
        object.__setattr__(self, "errors", errors)


def allocate(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """One choice for each layer, so that the errors add up to little and the costs to at most ``budget``.

    The choices that minimise ``error + price * cost`` for the lowest price that the budget allows: best possible for
    the cost they have together, whatever the form of the curves (Lagrange; Everett 1963). What is left of the budget,
    less than a step of one layer, then goes to the layers that gain the most by it.

    Args:
        curves: of each layer.
        budget: the most that all choices together may cost.

    Returns:
        The number of the choice of each layer.

    Raises:
        SpecError: no layers, or a budget that even the cheapest choices exceed.

    Example:
        >>> steep = Curve(np.array([0, 10, 20]), np.array([9.0, 1.0, 0.0]))
        >>> flat = Curve(np.array([0, 10, 20]), np.array([2.0, 1.0, 0.0]))
        >>> allocate({"a": steep, "b": flat}, 20)
        {'a': 1, 'b': 1}
    """
    if not curves:
        raise SpecError("there is no layer to share a budget among")
    least = sum(int(curve.costs.min()) for curve in curves.values())
    if least > budget:
        raise SpecError(f"the smallest choices of all layers cost {least:,} together, more than the budget {budget:,}")

    def choices(price: float) -> dict[str, int]:
        chosen = {}
        for name, curve in curves.items():
            total = curve.errors + price * curve.costs
            ties = np.flatnonzero(total == total.min())
            chosen[name] = int(ties[np.argmin(curve.costs[ties])])
        return chosen

    def cost(chosen: Mapping[str, int]) -> int:
        return sum(int(curves[name].costs[choice]) for name, choice in chosen.items())

    best = choices(0.0)
    if cost(best) > budget:
        # At a price over every error for one unit of cost the cheapest choices win.
        low, high = 0.0, 2.0 * max(float(curve.errors.max()) for curve in curves.values()) + 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2 if low else high / 2
            low, high = (middle, high) if cost(choices(middle)) > budget else (low, middle)
            if high - low <= 1e-12 * high:
                break
        best = choices(high)
    return _filled(curves, best, budget - cost(best))


def uniform(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """The largest choice of each layer within the same share of its own cost, that of its last choice.

    Args:
        curves: of each layer; costs ascending, the last that of the dense layer.
        budget: the most that all choices together may cost.

    Raises:
        SpecError: a layer whose smallest choice is larger.

    Example:
        >>> curve = Curve(np.array([10, 40, 50, 100]), np.array([3.0, 2.0, 1.0, 0.0]))
        >>> uniform({"up": curve, "down": curve}, 100)
        {'up': 2, 'down': 2}
    """
    total = sum(int(curve.costs[-1]) for curve in curves.values())
    chosen = {}
    for name, curve in curves.items():
        fitting = np.flatnonzero(curve.costs <= int(curve.costs[-1]) * budget / total)
        if not fitting.size:
            raise SpecError(f"{name} cannot be made as small as {budget / total:.1%} of its parameters; allow more")
        chosen[name] = int(fitting[-1])
    return chosen


def frontier(curves: Mapping[str, Curve]) -> tuple[tuple[float, float], ...]:
    """Tenths of the cost of all last choices that can be reached, and the sum of the errors at each.

    Example:
        >>> curve = Curve(np.array([5, 10]), np.array([1.0, 0.0]))
        >>> frontier({"up": curve})
        ((0.5, 1.0), (0.6, 1.0), (0.7, 1.0), (0.8, 1.0), (0.9, 1.0), (1.0, 0.0))
    """
    whole = sum(int(curve.costs[-1]) for curve in curves.values())
    points = []
    for tenths in range(1, 11):
        try:
            chosen = allocate(curves, whole * tenths // 10)
        except SpecError:
            continue  # smaller than the smallest choices
        points.append((tenths / 10, sum(float(curves[name].errors[choice]) for name, choice in chosen.items())))
    return tuple(points)


def cheapest_within(curves: Mapping[str, Curve], error: float) -> dict[str, int]:
    """The cheapest choice of each layer that leaves out at most so much of it.

    Args:
        curves: of each layer, with ``whole``.
        error: relative, that is the root of a choice's error over that of leaving out all.

    Example:
        >>> cheapest_within({"up": Curve(np.array([1, 2, 3]), np.array([0.5, 0.04, 0.0]), whole=1.0)}, 0.2)
        {'up': 1}
    """
    chosen = {}
    for name, curve in curves.items():
        if curve.whole is None:
            raise SpecError(f"the curve of {name} does not say what leaving out all of it would cost")
        # Rounded sums of squares must not turn away what is exactly at the limit.
        able = np.flatnonzero(curve.errors <= error**2 * curve.whole * (1 + 1e-9))
        if not able.size:
            raise SpecError(f"no choice for {name} is within an error of {error}; allow more")
        chosen[name] = int(able[np.argmin(curve.costs[able])])
    return chosen


def largest_error(curves: Mapping[str, Curve], chosen: Mapping[str, int]) -> float:
    """The most of any layer that its choice leaves out, relative as in :func:`cheapest_within`.

    Example:
        >>> largest_error({"up": Curve(np.array([1, 2]), np.array([0.5, 0.04]), whole=1.0)}, {"up": 1})
        0.2
    """
    found = [curves[name].errors[choice] / whole for name, choice in chosen.items() if (whole := curves[name].whole)]
    return float(np.sqrt(max(found, default=0.0)))


def _filled(curves: Mapping[str, Curve], chosen: dict[str, int], left: int) -> dict[str, int]:
    """Spend what is left, the largest fall of the error for its cost first."""
    while True:
        steps = []
        for name, choice in chosen.items():
            curve = curves[name]
            more, gain = curve.costs - curve.costs[choice], curve.errors[choice] - curve.errors
            able = np.flatnonzero((more > 0) & (more <= left) & (gain > 0))
            if able.size:
                step = able[np.argmax(gain[able] / more[able])]
                steps.append((float(gain[step] / more[step]), name, int(step), int(more[step])))
        if not steps:
            return chosen
        _, name, step, spent = max(steps)
        chosen[name] = step
        left -= spent
