"""Search for orders of rows and columns: sums of Kronecker products that are shuffled, errors, time limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, matrix, specs

from mpochain import ChainSpec, MPOChain, MPOError
from mpochain.decomposition import correlated_groups, permuted_kronecker, tt_svd


def planted(spec, seed):
    """A sum of Kronecker products in a random order, and that order."""
    rng = np.random.default_rng(seed)
    (m1, m2), (n1, n2) = spec.out_dims, spec.in_dims
    A, B = rng.normal(size=(spec.max_bond, m1, n1)), rng.normal(size=(spec.max_bond, m2, n2))
    product = sum(np.kron(a, b) for a, b in zip(A, B, strict=True))
    rows, columns = (rng.permutation(size) for size in spec.shape)
    return product[rows][:, columns], rows, columns


@given(specs(min_sites=2, max_sites=2, padding=False, max_entries=3000), SEEDS, st.booleans())
@settings(max_examples=30)
def test_error_is_exact_and_never_worse_than_in_the_given_order(spec, seed, annealed):
    W = matrix(spec, seed)
    result = permuted_kronecker(W, spec, steps=4, restarts=1, temperature=0.1 if annealed else 0.0, seed=seed)
    for order, size in ((result.rows, spec.shape[0]), (result.columns, spec.shape[1])):
        assert sorted(order) == list(range(size))
    rebuilt = MPOChain(result.cores, spec).to_matrix()
    error = np.linalg.norm(W[result.rows][:, result.columns] - rebuilt) / np.linalg.norm(W)
    assert error == pytest.approx(result.relative_error, abs=1e-7)
    given_order = tt_svd(W, spec).relative_error
    assert result.errors[0] == pytest.approx(given_order, abs=1e-7)
    assert all(after <= before for before, after in zip(result.errors, result.errors[1:], strict=False))


@pytest.mark.parametrize(
    "spec",
    [
        ChainSpec((60, 2), (80, 4), 2),
        ChainSpec((100, 1), (60, 2), 1),  # only columns have groups
        ChainSpec((40, 3), (60, 2), 2),
    ],
    ids=str,
)
def test_recovers_a_shuffled_sum(spec):
    errors = [permuted_kronecker(planted(spec, seed)[0], spec).relative_error for seed in range(3)]
    assert sum(error < 1e-6 for error in errors) >= 2, errors


def test_recovers_the_groups_that_were_shuffled():
    spec = ChainSpec((80, 2), (90, 4), 2)
    W, rows, columns = planted(spec, 1)
    result = permuted_kronecker(W, spec)
    assert result.relative_error < 1e-6
    for order, size in ((rows[result.rows], 2), (columns[result.columns], 4)):
        groups = order.reshape(-1, size) // size
        assert (groups == groups[:, :1]).all()


def test_correlated_groups_hold_every_member_once():
    spec = ChainSpec((8, 3), (6, 2), 1)
    rows, columns = correlated_groups(matrix(spec, 0), spec)
    assert sorted(rows) == list(range(24))
    assert sorted(columns) == list(range(12))


def test_the_same_arguments_give_the_same_result():
    spec = ChainSpec((10, 2), (8, 4), 2)
    W = matrix(spec, 3)
    first, second = (permuted_kronecker(W, spec, restarts=1, temperature=0.2, seed=5) for _ in range(2))
    assert first.errors == second.errors
    assert (first.rows == second.rows).all()
    assert (first.columns == second.columns).all()


def test_torch_tensors_and_entries_with_large_squares():
    spec = ChainSpec((10, 2), (8, 4), 2)
    W = matrix(spec, 3)
    plain = permuted_kronecker(W, spec)
    scaled = permuted_kronecker(torch.tensor(W * 2.0**500), spec)  # squares near the largest number
    assert all(isinstance(core, torch.Tensor) for core in scaled.cores)
    assert scaled.relative_error == pytest.approx(plain.relative_error)
    assert (scaled.rows == plain.rows).all()
    assert permuted_kronecker(np.zeros(spec.shape, np.float32), spec).relative_error == 0.0


def test_time_limit_and_progress():
    spec = ChainSpec((10, 2), (8, 4), 2)
    W = matrix(spec, 3)
    reported: list[tuple[int, float]] = []
    result = permuted_kronecker(W, spec, progress=lambda step, error: reported.append((step, error)))
    assert [error for _, error in reported] == list(result.errors)
    # Only the given order is evaluated.
    assert len(permuted_kronecker(W, spec, seconds=1e-9).errors) == 1


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (ChainSpec((2, 2, 2), (2, 2, 2), 2), {}, "two sites and no padding"),
        (ChainSpec((4, 2), (4, 2), 2, out_features=7, in_features=8), {}, "two sites and no padding"),
        (ChainSpec((4, 2), (5, 2), 2), {}, r"the weight is \(8, 8\), but the spec is for \(8, 10\)"),
        (ChainSpec((4, 2), (4, 2), 2), {"steps": 0}, "steps must be"),
        (ChainSpec((4, 2), (4, 2), 2), {"restarts": -1}, "restarts must be"),
        (ChainSpec((4, 2), (4, 2), 2), {"temperature": float("nan")}, "temperature must be"),
        (ChainSpec((4, 2), (4, 2), 2), {"seconds": 0}, "seconds must be"),
    ],
)
def test_invalid_arguments(spec, arguments, message):
    with pytest.raises(MPOError, match=message):
        permuted_kronecker(np.ones((8, 8)), spec, name="the weight", **arguments)


def test_nan():
    W = np.ones((8, 8))
    W[0, 0] = np.nan
    with pytest.raises(MPOError, match="matrix"):
        permuted_kronecker(W, ChainSpec((4, 2), (4, 2), 2))


def test_terms_beyond_the_attainable_are_clipped():
    spec = ChainSpec((8, 2), (8, 2), 100)
    assert spec.clipped
    assert spec.max_bond == 4
    assert permuted_kronecker(matrix(spec, 0), spec).relative_error < 1e-12
