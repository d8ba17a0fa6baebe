"""Specs of chains: attainable bonds, padding, storage, multiply-adds, and invalid arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from strategies import specs

from mpochain import ChainSpec, MPOError


@given(specs())
def test_bonds_are_attainable_from_both_sides(spec):
    sizes = [o * i for o, i in zip(spec.out_dims, spec.in_dims, strict=True)]
    for k, bond in enumerate(spec.bonds):
        assert 1 <= bond <= min(math.prod(sizes[: k + 1]), math.prod(sizes[k + 1 :]))
    edges = (1, *spec.bonds, 1)
    for k, size in enumerate(sizes):
        assert edges[k + 1] <= edges[k] * size
        assert edges[k] <= edges[k + 1] * size


@given(specs())
def test_transposing_twice_storing_and_core_shapes_round_trip(spec):
    assert spec.transposed().transposed() == spec
    assert ChainSpec.from_dict(spec.as_dict()) == spec
    assert ChainSpec.from_core_shapes(spec.core_shapes, *spec.shape) == spec
    assert hash(spec) == hash(ChainSpec.from_dict(spec.as_dict()))
    assert spec.parameters == sum(math.prod(shape) for shape in spec.core_shapes)


def test_numpy_integers_are_accepted():
    assert ChainSpec(np.array([2, 3]), np.array([2, 2]), np.int64(4)) == ChainSpec((2, 3), (2, 2), 4)


def test_clipped_bonds_are_visible():
    spec = ChainSpec((8, 16), (8, 16), 1000)
    assert spec.clipped
    assert spec.requested == (1000,)
    assert spec.bonds == (64,)
    assert "clipped from (1000)" in str(spec)


def test_padding_is_visible():
    spec = ChainSpec((8, 13), (4, 4), 5, out_features=101)
    assert spec.shape == (101, 16)
    assert spec.padded_shape == (104, 16)
    assert "padded to 104x16" in str(spec)
    assert eval(repr(spec)) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_dims": (2, 0), "in_dims": (2, 2)}, "out_dims must hold positive integers, got 0"),
        ({"out_dims": (2, 2), "in_dims": (2, -3)}, "in_dims must hold positive integers, got -3"),
        ({"out_dims": (2, 2.0), "in_dims": (2, 2)}, "out_dims must hold integers, got 2.0"),
        ({"out_dims": (2, True), "in_dims": (2, 2)}, "positive integers, got True"),
        ({"out_dims": "22", "in_dims": (2, 2)}, "must be a sequence"),
        ({"out_dims": 4, "in_dims": (2, 2)}, "must be a sequence"),
        ({"out_dims": (), "in_dims": ()}, "at least one site"),
        ({"out_dims": (2, 2), "in_dims": (4,)}, "2 sites and in_dims"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "max_bond": 0}, "max_bond must hold positive integers, got 0"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "max_bond": 1.5}, "max_bond must hold integers"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "bonds": (0,)}, "bonds must hold positive"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "bonds": (2, 2)}, "1 inner bonds"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "bonds": 2}, "bonds must be a sequence"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "bonds": (2,), "max_bond": 2}, "not both"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "out_features": 5}, "fewer than out_features=5"),
        ({"out_dims": (2, 2), "in_dims": (2, 2), "in_features": 0}, "in_features must hold positive"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(MPOError, match=message) as caught:
        ChainSpec(**arguments)
    assert isinstance(caught.value, ValueError)


def test_a_stored_spec_is_checked():
    good = ChainSpec((2, 2), (2, 2), 3).as_dict()
    with pytest.raises(MPOError, match="must have the keys"):
        ChainSpec.from_dict({**good, "extra": 1})
    with pytest.raises(MPOError, match="not attainable"):
        ChainSpec.from_dict({**good, "bonds": [9]})


@given(specs(max_sites=3))
def test_macs_equal_those_counted_site_by_site(spec):
    # Counted by contracting one core after the other, in either direction.
    for leftward in (True, False):
        ins, outs, total = list(spec.in_dims), [], 0
        order = range(spec.sites)[::-1] if leftward else range(spec.sites)
        for k in order:
            left, out, in_, right = spec.core_shapes[k]
            ins[k] = 1
            total += math.prod(ins) * math.prod(outs) * left * out * in_ * right
            outs.append(out)
        assert spec.macs(leftward=leftward) == total
    assert spec.macs() == min(spec.macs(leftward=True), spec.macs(leftward=False))
