"""Rows that suit several matrices at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpochain.decomposition import joint_pivots
from mpochain.errors import ShapeError


def factors(seed, out, ranks):
    random = np.random.default_rng(seed)
    # Columns of very different sizes, as of a left factor that holds the singular values.
    return [random.normal(size=(out, rank)) * 10.0 ** -np.linspace(0, 6, rank) for rank in ranks]


@given(st.integers(0, 2**16), st.integers(1, 60), st.data())
def test_the_first_rows_span_every_matrix(seed, out, data):
    ranks = data.draw(st.lists(st.integers(1, out), min_size=1, max_size=3))
    given_factors = factors(seed, out, ranks)
    order = joint_pivots(given_factors)
    assert sorted(order) == list(range(out))
    for factor, rank in zip(given_factors, ranks, strict=True):
        basis = np.linalg.qr(factor)[0]
        others = np.linalg.lstsq(basis[order[:rank]].T, basis[order[rank:]].T, rcond=None)[0]
        np.testing.assert_allclose(others.T @ basis[order[:rank]], basis[order[rank:]], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_stay_small(seed):
    for factor in (pair := factors(seed, 400, (100, 130))):
        order, rank = joint_pivots(pair), factor.shape[1]
        coefficients = np.linalg.solve(factor[order[:rank]].T, factor[order[rank:]].T)
        assert np.abs(coefficients).max() < 5


def test_one_matrix_gets_rows_as_good_as_those_of_pivoted_qr():
    import scipy.linalg

    (factor,) = factors(0, 200, (50,))
    basis = np.linalg.qr(factor)[0]
    pivots = scipy.linalg.qr(basis.T, pivoting=True, mode="r")[1][:50]
    found, best = (np.linalg.cond(basis[list(rows)]) for rows in (joint_pivots([factor])[:50], pivots))
    assert found < 3 * best


def test_arrays_of_torch_in_two_bytes():
    factor = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(joint_pivots([factor.bfloat16(), factor])) == list(range(12))


@pytest.mark.parametrize("shapes", [[], [(4, 2), (5, 2)], [(2, 3)]])
def test_wrong_shapes(shapes):
    with pytest.raises(ShapeError, match="with one out and r at most out"):
        joint_pivots([np.ones(shape) for shape in shapes])
