"""Budget allocation among layers: one choice per layer that keeps the total error low."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import ArgumentError

__all__ = [
    "Curve",
    "allocate",
    "best_at_price",
    "cheapest_within",
    "frontier",
    "largest_error",
    "same_choice",
    "uniform",
]

_BISECTIONS = 200


@dataclass(frozen=True, eq=False)
class Curve:
    """Costs and errors of the choices of one layer.

    The cost may be a weighted sum: :meth:`mpochain.compression.Choices.curve` with ``{"bytes": 1.0, "macs": 0.01}``
    adds two costs at these prices.

    Attributes:
        costs: ``(n,)``, cost of each choice, such as parameters or bytes; int64, or float64 for a weighted sum.
        errors: ``(n,)``, float64, the amount that each choice adds to the loss or to another error summed over layers;
            every layer uses the same unit.
        zero_error: error of the zero matrix in the same unit; None if unknown.
        macs: ``(n,)``, multiply-adds of each choice, for a limit of their own; None if they have none.
    """

    costs: NDArray[Any]
    errors: NDArray[Any]
    zero_error: float | None = None
    macs: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        costs, errors = np.asarray(self.costs), np.asarray(self.errors, dtype=np.float64)
        if self.macs is not None and np.shape(self.macs) != errors.shape:
            raise ArgumentError(
                f"a curve needs as many multiply-adds as errors, got shapes {np.shape(self.macs)} and {errors.shape}"
            )
        costs = costs.astype(np.float64 if costs.dtype.kind == "f" else np.int64)
        if costs.ndim != 1 or costs.shape != errors.shape or not costs.size:
            raise ArgumentError(f"a curve needs as many costs as errors, got shapes {costs.shape} and {errors.shape}")
        finite = np.isfinite(errors).all() and np.isfinite(costs).all()
        if not finite or (errors < 0).any() or (costs < 0).any():
            raise ArgumentError("the costs and errors of a curve must be finite and not negative")
        object.__setattr__(self, "costs", costs)
        object.__setattr__(self, "errors", errors)


def best_at_price(curve: Curve, price: float) -> int:
    """Index of the choice that minimises ``error + price * cost``; ties go to the cheapest.

    Args:
        curve: choices of one layer. If its costs are already a priced sum in units of the error, use ``price=1``.
        price: error that one unit of cost is worth.

    Example:
        >>> curve = Curve(np.array([0, 10, 20]), np.array([9.0, 1.0, 0.0]))
        >>> [best_at_price(curve, price) for price in (0.0, 0.2, 1.0)]
        [2, 1, 0]
    """
    total = curve.errors + price * curve.costs
    ties = np.flatnonzero(total == total.min())
    return int(ties[np.argmin(curve.costs[ties])])


def allocate(curves: Mapping[str, Curve], budget: float) -> dict[str, int]:
    """Select one choice per layer to minimise the total error within a budget.

    Minimises ``error + price * cost`` at the lowest price that the budget allows. For curves of any shape, the result
    is optimal for the total cost that it reaches (Lagrange multipliers; Everett 1963). The remaining budget, less than
    one step of any layer, is then spent greedily where it reduces the error most per unit of cost.

    Args:
        curves: choices of each layer, by name.
        budget: limit of the total cost, in the unit of the costs.

    Returns:
        The index of the choice of each layer.

    Raises:
        ArgumentError: there are no layers, or even the cheapest choices exceed the budget.

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
            f"the smallest choices of all layers cost {least:,} together, in the unit of the curves, more than the "
            f"budget {budget:,}; give a budget of at least {least:,}, or fewer layers{_without_choice(curves)}"
        )

    def choices(price: float) -> dict[str, int]:
        return {name: best_at_price(curve, price) for name, curve in curves.items()}

    def cost(chosen: Mapping[str, int]) -> float:
        return sum(curves[name].costs[choice].item() for name, choice in chosen.items())

    best = choices(0.0)
    if cost(best) > budget:
        # If one unit of cost is dearer than any error, the cheapest choices win.
        low, high = 0.0, 2.0 * max(float(curve.errors.max()) for curve in curves.values()) + 1.0
        while cost(choices(high)) > budget:
            high *= 2.0  # costs may differ by less than one unit
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2 if low else high / 2
            low, high = (middle, high) if cost(choices(middle)) > budget else (low, middle)
            if high - low <= 1e-12 * high:
                break
        best = choices(high)
    return _filled(curves, best, budget - cost(best))


def uniform(curves: Mapping[str, Curve], budget: float) -> dict[str, int]:
    """Select the largest choice of each layer that fits the same share of the layer's dense cost.

    A layer that cannot become so small, such as one with a single row, gets its smallest choice, and the others share
    the rest of the budget.

    Args:
        curves: choices of each layer, costs ascending; the last choice is the dense layer.
        budget: limit of the total cost, in the unit of the costs.

    Raises:
        ArgumentError: even the smallest choices of all layers exceed the budget.

    Example:
        >>> curve = Curve(np.array([10, 40, 50, 100]), np.array([3.0, 2.0, 1.0, 0.0]))
        >>> uniform({"up": curve, "down": curve}, 100)
        {'up': 2, 'down': 2}
        >>> uniform({"up": curve, "down": curve, "gate": Curve(np.array([10]), np.array([0.0]))}, 110)
        {'up': 2, 'down': 2, 'gate': 0}
    """
    total = sum(curve.costs[-1].item() for curve in curves.values())
    least = sum(curve.costs.min().item() for curve in curves.values())
    chosen: dict[str, int] = {}
    left, shared = budget, total
    free = list(curves)
    while True:
        too_large = [name for name in free if curves[name].costs.min() > curves[name].costs[-1].item() * left / shared]
        for name in too_large:
            chosen[name] = int(np.argmin(curves[name].costs))
            left -= curves[name].costs[chosen[name]].item()
            shared -= curves[name].costs[-1].item()
        free = [name for name in free if name not in chosen]
        if left < 0:
            raise ArgumentError(
                f"{too_large[0]} cannot be made as small as {budget / total:.1%} of its parameters; the smallest share "
                f"that these layers reach is {math.ceil(least / total * 1000) / 10:.1f}%{_without_choice(curves)}"
            )
        if not too_large or not free:
            break
    for name in free:
        costs = curves[name].costs
        chosen[name] = int(np.flatnonzero(costs <= costs[-1].item() * left / shared)[-1])
    return {name: chosen[name] for name in curves}


def same_choice(curves: Mapping[str, Curve], budget: float) -> dict[str, int]:
    """Select the choice of the largest index that fits the budget if every layer takes it, such as a number of bits.

    A layer with fewer choices takes its last one, the dense layer.

    Args:
        curves: choices of each layer in the same order, costs ascending; the last choice is the dense layer.
        budget: limit of the total cost, in the unit of the costs.

    Raises:
        ArgumentError: even the first choices of all layers exceed the budget.

    Example:
        >>> up, down = (Curve(np.array(costs), np.zeros(3)) for costs in ([2, 4, 16], [20, 40, 160]))
        >>> same_choice({"up": up, "down": down}, 50)
        {'up': 1, 'down': 1}
    """
    for index in reversed(range(max(len(curve.costs) for curve in curves.values()))):
        chosen = {name: min(index, len(curve.costs) - 1) for name, curve in curves.items()}
        total = sum(curves[name].costs[choice].item() for name, choice in chosen.items())
        if total <= budget:
            return chosen
    raise ArgumentError(
        f"the first choices of all layers cost {total:,} together, in the unit of the curves, more than the budget "
        f"{budget:,}; give a budget of at least {total:,}, or fewer layers{_without_choice(curves)}"
    )


def frontier(curves: Mapping[str, Curve]) -> tuple[tuple[float, float], ...]:
    """Total error at every reachable tenth of the dense cost, as pairs ``(share, error)``.

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
    """Select the cheapest choice of each layer whose relative error is within a limit.

    Args:
        curves: choices of each layer, with ``zero_error``.
        error: limit of the relative error, ``sqrt(choice error / zero_error)``.

    Raises:
        ArgumentError: the errors of a layer are unknown, or none of its choices is within the limit.

    Example:
        >>> cheapest_within({"up": Curve(np.array([1, 2, 3]), np.array([0.5, 0.04, 0.0]), zero_error=1.0)}, 0.2)
        {'up': 1}
    """
    chosen = {}
    for name, curve in curves.items():
        if curve.zero_error is None:
            raise ArgumentError(
                f"the errors of {name} are unknown before it is built, or its method states no zero_error, to which "
                "they are relative; give a budget as a share or a size instead of an error, or choose another method"
            )
        # Rounding in sums of squares must not reject a choice exactly at the limit.
        within = np.flatnonzero(curve.errors <= error**2 * curve.zero_error * (1 + 1e-9))
        if not within.size:
            raise ArgumentError(f"no choice for {name} is within an error of {error}; allow more")
        chosen[name] = int(within[np.argmin(curve.costs[within])])
    return chosen


def largest_error(curves: Mapping[str, Curve], chosen: Mapping[str, int]) -> float:
    """Largest relative error of the chosen layers, as defined in :func:`cheapest_within`.

    Example:
        >>> largest_error({"up": Curve(np.array([1, 2]), np.array([0.5, 0.04]), zero_error=1.0)}, {"up": 1})
        0.2
    """
    squares = [
        curves[name].errors[choice] / zero for name, choice in chosen.items() if (zero := curves[name].zero_error)
    ]
    return float(np.sqrt(max(squares, default=0.0)))


def _without_choice(curves: Mapping[str, Curve]) -> str:
    """Layers with no choice but the dense one, to end an error message; empty if there are none."""
    names = [name for name, curve in curves.items() if len(curve.costs) == 1]
    if not names:
        return ""
    named = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    return f" ({len(names)} of {len(curves)} layers cannot become smaller: {named}; leave them out with ignore=)"


def _filled(curves: Mapping[str, Curve], chosen: dict[str, int], left: float) -> dict[str, int]:
    """Spend the remaining budget greedily, on the largest reduction of error per unit of cost first."""
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
