"""Allocation of a budget among layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpochain import MPOError
from mpochain.compression import Choices, Costs, Curve, allocate
from mpochain.compression.allocation import best_at_price


@st.composite
def curves(draw):
    size = draw(st.integers(1, 5))
    costs = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size))
    errors = draw(st.lists(st.floats(0, 100), min_size=size, max_size=size))
    return Curve(np.array(costs), np.array(errors))


class TestAllocation:
    @given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80))
    def test_within_the_budget_and_best_for_what_it_costs(self, layer_curves, budget):
        named = {str(k): curve for k, curve in enumerate(layer_curves)}
        if sum(curve.costs.min() for curve in layer_curves) > budget:
            with pytest.raises(MPOError, match="more than the budget"):
                allocate(named, budget)
            return
        chosen = allocate(named, budget)

        def total(values, choices):
            return sum(getattr(curve, values)[k] for curve, k in zip(layer_curves, choices, strict=True))

        mine = [chosen[str(k)] for k in range(len(layer_curves))]
        assert total("costs", mine) <= budget
        every = list(itertools.product(*(range(len(curve.costs)) for curve in layer_curves)))
        best = min(total("errors", choices) for choices in every if total("costs", choices) <= budget)
        # By how much the best of all may be better: one layer's largest step, the gap of Lagrange's choices.
        step = max(float(curve.errors.max() - curve.errors.min()) for curve in layer_curves)
        assert total("errors", mine) <= best + step + 1e-9

    @given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80))
    def test_nothing_that_still_fits_would_help(self, layer_curves, budget):
        named = {str(k): curve for k, curve in enumerate(layer_curves)}
        if sum(curve.costs.min() for curve in layer_curves) > budget:
            return
        chosen = allocate(named, budget)
        left = budget - sum(curve.costs[chosen[name]] for name, curve in named.items())
        for name, curve in named.items():
            more = curve.costs - curve.costs[chosen[name]]
            assert not ((more <= left) & (more > 0) & (curve.errors < curve.errors[chosen[name]])).any()

    @given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80), st.floats(0.1, 10))
    def test_a_weighted_cost_in_another_unit_changes_nothing(self, layer_curves, budget, unit):
        named = {str(k): curve for k, curve in enumerate(layer_curves)}
        scaled = {name: Curve(curve.costs * unit, curve.errors) for name, curve in named.items()}
        if sum(curve.costs.min() for curve in layer_curves) > budget:
            return
        plain, weighted = allocate(named, budget), allocate(scaled, budget * unit * (1 + 1e-9))
        cost, error = (
            [sum(getattr(named[name], part)[choice] for name, choice in chosen.items()) for chosen in (plain, weighted)]
            for part in ("costs", "errors")
        )
        assert cost[1] <= budget
        # Equal up to what rounding of the price decides between two choices.
        step = max(float(curve.errors.max() - curve.errors.min()) for curve in layer_curves)
        assert abs(error[0] - error[1]) <= step + 1e-9

    def test_two_prices_choose_other_layers(self):
        """A choice with few bytes and one with few multiply-adds: prices decide which is better."""
        costs = Costs(np.array([10, 20, 100]), np.array([40, 80, 400]), np.array([200, 20, 100]), 4)
        choices = Choices(costs, np.array([1.0, 1.0, 0.0]), lambda _: None)
        assert best_at_price(choices.curve({"bytes": 1.0, "macs": 0.0}), 1.0) == 0
        assert best_at_price(choices.curve({"bytes": 0.1, "macs": 1.0}), 1.0) == 1
        assert best_at_price(choices.curve({"bytes": 1e-4, "macs": 1e-4}), 1.0) == 2
        assert allocate({"up": choices.curve("macs")}, 50) == {"up": 1}
        assert allocate({"up": choices.curve("bytes")}, 50) == {"up": 0}
        assert allocate({"up": choices.curve({"bytes": 1.0, "macs": 2.0})}, 130) == {"up": 1}

    def test_wrong_curves(self):
        with pytest.raises(MPOError, match="as many costs as errors"):
            Curve(np.array([1, 2]), np.array([1.0]))
        with pytest.raises(MPOError, match="finite and not negative"):
            Curve(np.array([1]), np.array([np.nan]))
        with pytest.raises(MPOError, match="no layer"):
            allocate({}, 1)
