"""Budget allocation among layers under two limits: a cost such as bytes, and multiply-adds, each with its own price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpochain.compression.allocation import Curve
from mpochain.errors import ArgumentError

__all__ = ["allocate_within", "fewest_macs"]

_BISECTIONS = 100
# Prices are relative to the largest error and to the limits, so a price above this bound buys nothing more.
_LARGEST_PRICE = 2.0**100

_Values = NDArray[Any]


def allocate_within(curves: Mapping[str, Curve], budget: float, macs: float) -> dict[str, int]:
    """Select one choice per layer to minimise the total error within a budget and a limit of multiply-adds.

    Minimises ``error + price * cost + price of work * multiply-adds`` at the lowest prices for which both limits hold.
    The result is optimal for the totals that it reaches (Lagrange multipliers; Everett 1963). What is left of the
    limits, about one step of a layer each, is then spent greedily.

    Args:
        curves: choices of each layer, by name, with ``macs``.
        budget: limit of the total cost, in the unit of the costs.
        macs: limit of the total multiply-adds.

    Returns:
        The index of the choice of each layer.

    Raises:
        ArgumentError: there are no layers, a curve has no multiply-adds, or no choices are within both limits.

    Example:
        >>> small = Curve(np.array([1, 9, 10]), np.array([1.0, 1.0, 0.0]), macs=np.array([10, 5, 10]))
        >>> allocate_within({"up": small, "down": small}, 12, 20), allocate_within({"up": small, "down": small}, 18, 12)
        ({'up': 2, 'down': 0}, {'up': 1, 'down': 1})
    """
    grid = _Grid.of(curves)
    least, least_macs = float(grid.costs.min(1).sum()), float(grid.macs.min(1).sum())
    for smallest, limit, unit in ((least, budget, "cost"), (least_macs, macs, "multiply-adds")):
        if smallest > limit:
            raise ArgumentError(
                f"the choices of all layers with the least {unit} take {smallest:,.0f} together, more than the limit "
                f"{limit:,.0f}; give at least {smallest:,.0f}, or fewer layers"
            )
    chosen = _priced(grid, budget, macs)
    if chosen is None:
        chosen = _fastest(grid, budget)
        reached = float(grid.of_choices(grid.macs, chosen).sum())
    if not all(grid.within(chosen, budget, macs)):
        raise ArgumentError(
            f"no choices of the layers are within both limits, a cost of {budget:,.0f} and {macs:,.0f} multiply-adds; "
            f"at this cost they need about {reached:,.0f} multiply-adds. Raise one of the limits"
        )
    return dict(zip(curves, map(int, _filled(grid, chosen, budget, macs)), strict=True))


def fewest_macs(curves: Mapping[str, Curve], budget: float) -> int:
    """About the fewest multiply-adds that choices within a budget need, whatever their error.

    Example:
        >>> curve = Curve(np.array([1, 9, 10]), np.array([1.0, 1.0, 0.0]), macs=np.array([10, 5, 10]))
        >>> fewest_macs({"up": curve, "down": curve}, 12), fewest_macs({"up": curve, "down": curve}, 18)
        (15, 10)
    """
    grid = _Grid.of(curves)
    return int(grid.of_choices(grid.macs, _fastest(grid, budget)).sum())


@dataclass(frozen=True, eq=False)
class _Grid:
    """Choices of all layers as matrices ``(layers, choices)``, filled up with infinite errors and costs."""

    errors: _Values
    costs: _Values
    macs: _Values

    @classmethod
    def of(cls, curves: Mapping[str, Curve]) -> _Grid:
        if not curves:
            raise ArgumentError("there is no layer to share a budget among")
        missing = [name for name, curve in curves.items() if curve.macs is None]
        if missing:
            raise ArgumentError(f"the curve of {missing[0]} has no multiply-adds; give them as macs=")
        size = max(len(curve.errors) for curve in curves.values())

        def filled(part: str) -> _Values:
            rows = [np.asarray(getattr(curve, part), dtype=np.float64) for curve in curves.values()]
            return np.stack([np.pad(row, (0, size - len(row)), constant_values=np.inf) for row in rows])

        return cls(filled("errors"), filled("costs"), filled("macs"))

    def of_choices(self, values: _Values, chosen: _Values) -> _Values:
        """The value of each layer's choice, ``(layers,)``."""
        return np.take_along_axis(values, chosen[:, None], 1)[:, 0]

    def within(self, chosen: _Values, budget: float, macs: float) -> tuple[bool, bool]:
        """Whether the totals of a choice per layer are within each limit."""
        return (
            bool(self.of_choices(self.costs, chosen).sum() <= budget),
            bool(self.of_choices(self.macs, chosen).sum() <= macs),
        )


def _best(totals: _Values, ties: _Values) -> _Values:
    """Index of the least total of each layer; of equal ones that with the least value in ``ties``."""
    return np.argmin(np.where(totals == totals.min(1, keepdims=True), ties, np.inf), axis=1)


@dataclass(frozen=True, eq=False)
class _Priced:
    """Choices at the lowest price at which they fit, and those just below of it, which do not; None at price 0."""

    chosen: _Values
    below: _Values | None


def _at_lowest_price(choose: Callable[[float], _Values], fits: Callable[[_Values], bool]) -> _Priced | None:
    """Choices at the lowest price at which they fit; None if they do at no price."""
    below = choose(0.0)
    if fits(below):
        return _Priced(below, None)
    low, high = 0.0, 1.0
    while not fits(chosen := choose(high)):
        below, low, high = chosen, high, 4.0 * high
        if high > _LARGEST_PRICE:
            return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2 if low else high / 16
        candidate = choose(middle)
        if fits(candidate):
            high, chosen = middle, candidate
        else:
            low, below = middle, candidate
        if high - low <= 1e-9 * high or high < 1.0 / _LARGEST_PRICE:
            break
    return _Priced(chosen, below)


def _priced(grid: _Grid, budget: float, macs: float) -> _Values | None:
    """Choices at the lowest price of multiply-adds at which both limits hold; None if there is none."""
    errors = grid.errors / max(float(grid.errors[np.isfinite(grid.errors)].max()), 1e-300)
    costs, work = grid.costs / max(budget, 1.0), grid.macs / max(macs, 1.0)

    def at_price_of_work(price_of_work: float) -> _Values:
        base = errors + price_of_work * work if price_of_work else errors
        priced = _at_lowest_price(
            lambda price: _best(base + price * costs if price else base, costs + work),
            lambda chosen: grid.within(chosen, budget, macs)[0],
        )
        if priced is None:
            return np.argmin(costs, axis=1)
        return priced.chosen if priced.below is None else _mixed(grid, priced.chosen, priced.below, budget)

    priced = _at_lowest_price(at_price_of_work, lambda chosen: all(grid.within(chosen, budget, macs)))
    return None if priced is None else priced.chosen


def _mixed(grid: _Grid, chosen: _Values, below: _Values, budget: float) -> _Values:
    """Some layers as in ``below``, the others as in ``chosen``, within the budget, so that the work is least.

    At the price between them both are equally good for every layer, so any mixture is as good for what it costs.
    """
    mixed = chosen.copy()
    cost, work = (
        grid.of_choices(values, below) - grid.of_choices(values, chosen) for values in (grid.costs, grid.macs)
    )
    left = budget - float(grid.of_choices(grid.costs, chosen).sum())
    for layer in np.argsort(work / np.maximum(cost, 1e-15), kind="stable"):
        if chosen[layer] != below[layer] and work[layer] < 0 and cost[layer] <= left:
            mixed[layer] = below[layer]
            left -= cost[layer]
    return mixed


def _fastest(grid: _Grid, budget: float) -> _Values:
    """Choices with about the least work within a budget, whatever their error."""
    work = grid.macs / max(float(grid.macs[np.isfinite(grid.macs)].max()), 1.0)
    priced = _at_lowest_price(
        lambda price: _best(work + price * grid.costs / max(budget, 1.0) if price else work, grid.costs),
        lambda chosen: grid.within(chosen, budget, np.inf)[0],
    )
    if priced is None:
        return np.argmin(grid.costs, axis=1)
    return priced.chosen if priced.below is None else _mixed(grid, priced.chosen, priced.below, budget)


def _filled(grid: _Grid, chosen: _Values, budget: float, macs: float) -> _Values:
    """Spend what is left of both limits, on the largest reduction of error per share of the limits first."""
    chosen = chosen.copy()
    while True:
        error, cost, work = (
            grid.of_choices(values, chosen)[:, None] for values in (grid.errors, grid.costs, grid.macs)
        )
        more_cost, more_work, gain = grid.costs - cost, grid.macs - work, error - grid.errors
        affordable = (more_cost <= budget - cost.sum()) & (more_work <= macs - work.sum()) & (gain > 0)
        if not affordable.any():
            return chosen
        spent = np.maximum(more_cost, 0.0) / max(budget, 1.0) + np.maximum(more_work, 0.0) / max(macs, 1.0)
        rate = np.where(affordable, gain, -np.inf) / np.maximum(np.where(affordable, spent, 1.0), 1e-15)
        layer, choice = np.unravel_index(int(np.argmax(rate)), rate.shape)
        chosen[layer] = choice
