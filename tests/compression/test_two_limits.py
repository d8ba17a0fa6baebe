"""Allocation under two limits, one of bytes and one of multiply-adds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpochain import MPOError
from mpochain.compression import Curve, allocate
from mpochain.compression.two_limits import allocate_within


@st.composite
def curves(draw):
    size = draw(st.integers(1, 5))
    costs, macs = (draw(st.lists(st.integers(0, 20), min_size=size, max_size=size)) for _ in range(2))
    errors = draw(st.lists(st.floats(0, 100), min_size=size, max_size=size))
    return Curve(np.array(costs), np.array(errors), macs=np.array(macs))


def totals(layer_curves, choices):
    parts = ("costs", "macs", "errors")
    return [sum(getattr(curve, part)[k] for curve, k in zip(layer_curves, choices, strict=True)) for part in parts]


@given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80), st.integers(0, 80))
def test_within_both_limits_and_near_the_best(layer_curves, budget, macs):
    named = {str(k): curve for k, curve in enumerate(layer_curves)}
    every = [
        totals(layer_curves, choices) for choices in itertools.product(*(range(len(c.costs)) for c in layer_curves))
    ]
    # Lagrange's choices may miss the best of all by a step of one layer for each limit.
    steps = [max(float(np.ptp(getattr(curve, part))) for curve in layer_curves) for part in ("costs", "macs", "errors")]
    try:
        chosen = allocate_within(named, budget, macs)
    except MPOError:
        assert not any(c <= budget - 2 * steps[0] and w <= macs - 2 * steps[1] for c, w, _ in every)
        return
    cost, work, error = totals(layer_curves, chosen.values())
    assert cost <= budget
    assert work <= macs
    inside = [e for c, w, e in every if c <= budget - 2 * steps[0] and w <= macs - 2 * steps[1]]
    assert error <= min(inside, default=np.inf) + 1e-9
    for name, curve in named.items():
        fits = (cost + curve.costs - curve.costs[chosen[name]] <= budget) & (
            work + curve.macs - curve.macs[chosen[name]] <= macs
        )
        assert not (fits & (curve.errors < curve.errors[chosen[name]])).any(), "nothing that still fits would help"


@given(st.lists(curves(), min_size=1, max_size=4), st.integers(0, 80))
def test_a_limit_that_does_not_bind_changes_nothing(layer_curves, budget):
    named = {str(k): curve for k, curve in enumerate(layer_curves)}
    if sum(curve.costs.min() for curve in layer_curves) > budget:
        return
    one = totals(layer_curves, allocate(named, budget).values())
    two = totals(layer_curves, allocate_within(named, budget, 1000).values())
    step = max(float(np.ptp(curve.errors)) for curve in layer_curves)
    assert two[0] <= budget
    assert abs(one[2] - two[2]) <= step + 1e-9


@given(st.lists(curves(), min_size=1, max_size=3), st.integers(10, 80), st.integers(10, 80), st.floats(0.1, 1e9))
def test_units_change_little(layer_curves, budget, macs, unit):
    named = {str(k): curve for k, curve in enumerate(layer_curves)}
    scaled = {k: Curve(c.costs * unit, c.errors * unit, macs=c.macs * unit) for k, c in named.items()}
    try:
        one = totals(layer_curves, allocate_within(named, budget, macs).values())
        two = totals(
            layer_curves, allocate_within(scaled, budget * unit * (1 + 1e-9), macs * unit * (1 + 1e-9)).values()
        )
    except MPOError:
        return
    step = max(float(np.ptp(curve.errors)) for curve in layer_curves)
    assert abs(one[2] - two[2]) <= 2 * step + 1e-9


def test_the_limits_decide_which_form_a_layer_takes():
    """Few bits take few bytes and all multiply-adds; low rank takes few multiply-adds and more bytes."""
    curve = Curve(np.array([4, 12, 16]), np.array([1.0, 1.0, 0.0]), macs=np.array([100, 40, 100]))
    layers = {"up": curve, "down": curve, "gate": curve}
    assert set(allocate_within(layers, 12, 300).values()) == {0}
    assert set(allocate_within(layers, 48, 120).values()) == {1}
    assert sorted(allocate_within(layers, 32, 240).values()) == [0, 1, 2]


def test_what_cannot_be_met_is_refused_with_the_least():
    curve = Curve(np.array([4, 12, 16]), np.array([1.0, 1.0, 0.0]), macs=np.array([100, 40, 100]))
    with pytest.raises(MPOError, match="the least cost take 4 together, more than the limit 3"):
        allocate_within({"up": curve}, 3, 100)
    with pytest.raises(MPOError, match="the least multiply-adds take 40 together, more than the limit 30"):
        allocate_within({"up": curve}, 16, 30)
    with pytest.raises(MPOError, match="at this cost they need about 100 multiply-adds"):
        allocate_within({"up": curve}, 5, 60)
    with pytest.raises(MPOError, match="has no multiply-adds"):
        allocate_within({"up": Curve(np.array([1]), np.array([0.0]))}, 5, 60)
    with pytest.raises(MPOError, match="as many multiply-adds as errors"):
        Curve(np.array([1]), np.array([0.0]), macs=np.array([1, 2]))
    with pytest.raises(MPOError, match="no layer"):
        allocate_within({}, 1, 1)
