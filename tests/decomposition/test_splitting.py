"""Factors that are split off: exact where they are there, of the stated error where they are not."""

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
def test_the_error_is_the_stated_one(large, factors, permuted, seed):
    shape = [large[0] * 2, large[1] * 2]
    for m, n in factors:
        shape = [shape[0] * m, shape[1] * n]
    matrix = np.random.default_rng(seed).normal(size=shape)
    found = split_off(matrix, factors, permuted=permuted)
    assert found.spec == split_spec(tuple(shape), factors, 1)
    ordered = matrix[found.rows][:, found.columns]
    error = np.linalg.norm(ordered - MPOChain(found.cores, found.spec).to_matrix()) / np.linalg.norm(matrix)
    assert abs(error - found.relative_error) < 1e-9
    given_order = split_off(matrix, factors, permuted=False)
    if len(factors) == 1:
        assert found.relative_error <= given_order.relative_error + 1e-12
    for core in found.cores[1:]:
        assert abs(np.mean(core**2) - 1) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_products_are_found_again(seed):
    random = np.random.default_rng(seed)
    small = np.kron([[1.0, -2.0]], [[1.0, 0.3]])
    table = np.kron(random.normal(size=(60, 12)), small)[:, random.permutation(48)]
    found = split_off(table, [(1, 2), (1, 2)])
    assert found.relative_error < 1e-6
    assert (found.rows == np.arange(60)).all()
    assert split_off(table, [(1, 2), (1, 2)], permuted=False).relative_error > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_say_nothing_stay_where_they_are(seed):
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
    given = []

    def search(*arguments, seconds, **named):
        given.append(seconds)
        return permuted_kronecker(*arguments, seconds=1e-9, **named)

    monkeypatch.setattr(splitting, "permuted_kronecker", search)
    split_off(np.random.default_rng(0).normal(size=(8, 8)), [(1, 2), (1, 2)], seconds=10)
    assert 4 < given[0] < 6
    assert 8 < given[1] <= 10


def test_several_terms():
    random = np.random.default_rng(0)
    matrix = sum(np.kron(random.normal(size=(6, 8)), random.normal(size=(2, 3))) for _ in range(2))
    assert split_off(matrix, [(2, 3)], terms=2, permuted=False).relative_error < 1e-12
    # No more terms than the factor has entries.
    assert split_off(matrix, [(2, 3)], terms=99, permuted=False).spec.bonds == (6,)


def test_nothing_to_split():
    found = split_off(np.zeros((4, 6)), [(2, 2)])
    assert found.relative_error == 0
    assert not any(core.any() for core in found.cores)


@pytest.mark.parametrize(
    ("shape", "factors", "terms", "message"),
    [
        ((4, 6), [], 1, "no factor"),
        ((5, 6), [(2, 2)], 1, "2x2 does not divide what is left of a 5x6 matrix, 5x6"),
        ((4, 6), [(2, 2), (2, 2)], 1, "2x2 does not divide what is left of a 4x6 matrix, 2x3"),
        ((4, 6), [(2, 2), (2, 1)], 2, "several are split off one term"),
        ((4, 6), [(2, 2)], 0, "terms must be a positive integer"),
        ((4, 6), [(0, 2)], 1, "does not divide"),
    ],
)
def test_what_cannot_be_split(shape, factors, terms, message):
    with pytest.raises(MPOError, match=message):
        split_off(np.ones(shape), factors, terms)
