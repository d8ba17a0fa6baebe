"""Kronecker factors split off a matrix: exact products are recovered, other errors are as stated."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpochain import ChainSpec, MPOChain, MPOError
from mpochain.decomposition import permuted_kronecker, split_off, split_spec, splitting

factor = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(factor, st.lists(factor, min_size=1, max_size=3), st.booleans(), st.integers(0, 2**16))
def test_stated_error_equals_the_dense_one(large, factors, permuted, seed):
    shape = [large[0] * 2, large[1] * 2]
    for m, n in factors:
        shape = [shape[0] * m, shape[1] * n]
    matrix = np.random.default_rng(seed).normal(size=shape)
    result = split_off(matrix, factors, permuted=permuted)
    assert result.spec == split_spec(tuple(shape), factors, 1)
    ordered = matrix[result.rows][:, result.columns]
    error = np.linalg.norm(ordered - MPOChain(result.cores, result.spec).to_matrix()) / np.linalg.norm(matrix)
    assert abs(error - result.relative_error) < 1e-9
    unpermuted = split_off(matrix, factors, permuted=False)
    if len(factors) == 1:
        assert result.relative_error <= unpermuted.relative_error + 1e-12
    for core in result.cores[1:]:
        assert abs(np.mean(core**2) - 1) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_recovers_shuffled_products(seed):
    random = np.random.default_rng(seed)
    small = np.kron([[1.0, -2.0]], [[1.0, 0.3]])
    table = np.kron(random.normal(size=(60, 12)), small)[:, random.permutation(48)]
    result = split_off(table, [(1, 2), (1, 2)])
    assert result.relative_error < 1e-6
    assert (result.rows == np.arange(60)).all()
    assert split_off(table, [(1, 2), (1, 2)], permuted=False).relative_error > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_rows_without_groups_keep_their_order(seed):
    table = np.random.default_rng(seed).normal(size=(60, 16))
    assert (split_off(table, [(1, 2), (1, 2)]).rows == np.arange(60)).all()
    spec = ChainSpec((60, 1), (8, 2), 1)
    assert (permuted_kronecker(table, spec, restarts=1).rows == np.arange(60)).all()


def test_a_tall_table_takes_memory_of_its_own_size():
    table = np.random.default_rng(0).normal(size=(20_000, 4))
    tracemalloc.start()
    try:
        split_off(table, [(1, 2)], seconds=5)
        assert tracemalloc.get_traced_memory()[1] < 40 * table.nbytes
    finally:
        tracemalloc.stop()


def test_the_time_is_shared_among_factors(monkeypatch):
    limits = []

    def search(*arguments, seconds, **named):
        limits.append(seconds)
        return permuted_kronecker(*arguments, seconds=1e-9, **named)

    monkeypatch.setattr(splitting, "permuted_kronecker", search)
    split_off(np.random.default_rng(0).normal(size=(8, 8)), [(1, 2), (1, 2)], seconds=10)
    assert 4 < limits[0] < 6
    assert 8 < limits[1] <= 10


def test_several_terms():
    random = np.random.default_rng(0)
    matrix = sum(np.kron(random.normal(size=(6, 8)), random.normal(size=(2, 3))) for _ in range(2))
    assert split_off(matrix, [(2, 3)], terms=2, permuted=False).relative_error < 1e-12
    # No more terms than the factor has entries.
    assert split_off(matrix, [(2, 3)], terms=99, permuted=False).spec.bonds == (6,)


def test_zero_matrix():
    result = split_off(np.zeros((4, 6)), [(2, 2)])
    assert result.relative_error == 0
    assert not result.cores[0].any()
    assert result.cores[1].all(), "with both factors zero, neither could be trained"


@pytest.mark.parametrize(
    ("shape", "factors", "terms", "message"),
    [
        ((4, 6), [], 1, "got no factors to split off"),
        ((5, 6), [(2, 2)], 1, "2x2 does not divide the remaining 5x6 of the 5x6 matrix"),
        ((4, 6), [(2, 2), (2, 2)], 1, "2x2 does not divide the remaining 2x3 of the 4x6 matrix"),
        ((4, 6), [(2, 2), (2, 1)], 2, "2 terms allows one factor, got 2; give terms=1 for several"),
        ((4, 6), [(2, 2)], 0, "terms must be a positive integer"),
        ((4, 6), [(0, 2)], 1, "does not divide"),
    ],
)
def test_invalid_arguments(shape, factors, terms, message):
    with pytest.raises(MPOError, match=message):
        split_off(np.ones(shape), factors, terms)
