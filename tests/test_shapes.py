"""Integer factorisations, and candidate specs within a budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpochain import MPOError, shapes
from mpochain.errors import ArgumentError


@given(st.integers(1, 5000), st.integers(1, 4))
def test_balanced_dims_are_the_most_even_factorisation(n, sites):
    dims = shapes.balanced(n, sites)
    assert math.prod(dims) == n
    assert len(dims) == sites
    assert list(dims) == sorted(dims)
    spread = dims[-1] / dims[0]
    if sites == 2:
        assert all(other[-1] / other[0] >= spread for other in shapes.factorizations(n, 2))


@given(st.integers(1, 400), st.integers(1, 3))
def test_factorisations_are_complete(n, sites):
    factorizations = list(shapes.factorizations(n, sites))
    assert len(factorizations) == len(set(factorizations))
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    if sites == 2:
        assert factorizations == [(d, n // d) for d in divisors if d <= n // d]
    assert all(math.prod(dims) == n and list(dims) == sorted(dims) for dims in factorizations)


@given(st.integers(2, 60_000), st.integers(2, 3))
def test_padded_dims_hold_the_size_with_little_waste(n, sites):
    dims = shapes.padded(n, sites)
    assert math.prod(dims) >= n
    assert dims[-1] <= 2 * dims[0]
    if n >= 1000:
        assert math.prod(dims) <= 1.1 * n


@given(
    st.sampled_from([(64, 64), (128, 512), (65, 128), (97, 101), (768, 3072)]),
    st.one_of(st.none(), st.integers(300, 20_000)),
    st.one_of(st.none(), st.integers(300, 50_000)),
)
def test_candidates_respect_the_budget_and_use_it(shape, parameters, macs):
    if parameters is None and macs is None:
        with pytest.raises(ArgumentError, match="needs a budget"):
            shapes.candidate_specs(*shape)
        return
    candidates = shapes.candidate_specs(*shape, parameters=parameters, macs=macs)
    assert len(set(candidates)) == len(candidates)
    for spec in candidates:
        assert spec.shape == shape
        assert parameters is None or spec.parameters <= parameters
        assert macs is None or spec.macs() <= macs
        larger = spec.with_bonds(spec.max_bond + 1)
        over = (parameters is not None and larger.parameters > parameters) or (
            macs is not None and larger.macs() > macs
        )
        assert over or larger == spec
    assert [spec.macs() for spec in candidates] == sorted(spec.macs() for spec in candidates)


def test_skewed_dims_need_less_work_at_equal_parameters():
    even, skew = shapes.skewed(4096, 4096, 64, 16), shapes.skewed(4096, 4096, 8, 16)
    assert even.parameters == skew.parameters == 131_072
    assert even.macs() == 8 * skew.macs()


@pytest.mark.parametrize("bad", [0, -1, 1.5, "8", True])
def test_invalid_sizes(bad):
    with pytest.raises(MPOError, match="positive integer"):
        shapes.low_rank(bad, 4)
    with pytest.raises(MPOError, match="positive integer"):
        list(shapes.factorizations(12, bad))


def test_invalid_skew_and_ratio():
    with pytest.raises(MPOError, match="does not divide out_features=65"):
        shapes.skewed(65, 128, 2)
    for ratio in (1.0, float("nan")):
        with pytest.raises(MPOError, match="max_ratio"):
            shapes.padded(100, 2, max_ratio=ratio)
