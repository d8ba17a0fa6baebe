"""Interpolative decomposition and weighted low rank against dense algebra."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS

from mpochain import MPOError
from mpochain.decomposition import interpolative, interpolative_parameters, interpolative_rank, weighted_low_rank

SIZES = st.integers(1, 12)
LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


def moments(random, size, samples=200):
    x = random.normal(size=(samples, size)) * np.exp(random.normal(size=size))
    return x.T @ x / samples


class TestInterpolative:
    @given(SIZES, SIZES, SIZES, SEEDS)
    def test_same_matrix_with_fewer_parameters(self, out, in_, rank, seed):
        rank = min(rank, out, in_)
        random = np.random.default_rng(seed)
        left, right = random.normal(size=(out, rank)), random.normal(size=(rank, in_))
        interpolation = interpolative(left, right)
        assert interpolation.rank == rank
        assert sorted(interpolation.permutation) == list(range(out))
        np.testing.assert_allclose(interpolation.to_matrix(), left @ right, rtol=1e-9, atol=1e-9)
        assert (
            interpolation.parameters
            == interpolation.rows.size + interpolation.coefficients.size
            == interpolative_parameters(out, in_, rank)
        )

    @given(SIZES, SIZES, SEEDS)
    def test_dependent_columns_reduce_the_rank(self, out, in_, seed):
        random = np.random.default_rng(seed)
        column, right = random.normal(size=(out, 1)), random.normal(size=(3, in_))
        left = np.concatenate([column, 2 * column, 0 * column], axis=1)[:, : min(3, out)]
        interpolation = interpolative(left, right[: left.shape[1]])
        assert interpolation.rank == 1
        np.testing.assert_allclose(interpolation.to_matrix(), left @ right[: left.shape[1]], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_every_library_in_float32(self, library):
        random = np.random.default_rng(0)
        left, right = random.normal(size=(9, 4)), random.normal(size=(4, 5))
        make = LIBRARIES[library]
        interpolation = interpolative(make(left.astype(np.float32)), make(right.astype(np.float32)))
        assert type(interpolation.rows) is type(make(left))
        assert "float32" in str(interpolation.coefficients.dtype)
        np.testing.assert_allclose(np.asarray(interpolation.to_matrix()), left @ right, atol=1e-5)

    def test_zero_matrix(self):
        interpolation = interpolative(np.zeros((4, 2)), np.ones((2, 3)))
        np.testing.assert_array_equal(interpolation.to_matrix(), np.zeros((4, 3)))

    @given(SIZES, SIZES, st.integers(0, 200))
    def test_largest_rank_within_a_budget(self, out, in_, parameters):
        rank = interpolative_rank(out, in_, parameters)
        assert interpolative_parameters(out, in_, rank) <= parameters
        assert rank == min(out, in_) or interpolative_parameters(out, in_, rank + 1) > parameters

    @pytest.mark.parametrize(
        ("left", "right", "message"),
        [
            (np.ones((3, 2)), np.ones((3, 2)), "expected left"),
            (np.ones((2, 3)), np.ones((3, 2)), "expected left"),
            (np.ones(3), np.ones((3, 2)), "left must be a matrix"),
            (np.ones((3, 2), dtype=int), np.ones((2, 2)), "left has elements of type int64"),
            (np.full((3, 2), np.nan), np.ones((2, 2)), "left of shape"),
        ],
    )
    def test_invalid_factors(self, left, right, message):
        with pytest.raises(MPOError, match=message):
            interpolative(left, right)


class TestWeighted:
    @given(SIZES, SIZES, SEEDS, st.booleans(), st.booleans())
    def test_stated_errors_equal_those_of_the_factors(self, out, in_, seed, inputs, outputs):
        random = np.random.default_rng(seed)
        W = random.normal(size=(out, in_))
        H = moments(random, in_) if inputs else np.eye(in_)
        G = moments(random, out) if outputs else np.eye(out)
        fit = weighted_low_rank(W, H if inputs else None, G if outputs else None, ridge=0.0)
        for rank in range(min(out, in_) + 1):
            left, right = fit.factors(rank)
            difference = W - left @ right
            actual = np.trace(G @ difference @ H @ difference.T)
            assert fit.errors[rank] == pytest.approx(actual, rel=1e-6, abs=1e-9 * fit.errors[0])
        assert fit.relative_error(0) == pytest.approx(1.0)

    @given(st.integers(2, 8), st.integers(2, 8), SEEDS)
    def test_perturbed_factors_are_not_better(self, out, in_, seed):
        random = np.random.default_rng(seed)
        W, H, G = random.normal(size=(out, in_)), moments(random, in_), moments(random, out)
        fit = weighted_low_rank(W, H, G, ridge=0.0)
        left, right = fit.factors(1)
        for step in (1e-3, 1e-1, 1.0):
            other = (left + step * random.normal(size=left.shape)) @ (right + step * random.normal(size=right.shape))
            difference = W - other
            assert np.trace(G @ difference @ H @ difference.T) >= fit.errors[1] * (1 - 1e-9)

    def test_without_weights_squares_are_those_of_singular_values(self):
        W = np.random.default_rng(0).normal(size=(7, 5))
        np.testing.assert_allclose(weighted_low_rank(W).squares, np.linalg.svd(W)[1] ** 2)
        np.testing.assert_allclose(weighted_low_rank(W.T).squares, np.linalg.svd(W)[1] ** 2)

    @pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
    def test_inputs_in_a_subspace(self, shape):
        random = np.random.default_rng(0)
        W = random.normal(size=shape)
        x = random.normal(size=(3, shape[1]))  # three inputs: rank 3 is enough for them
        fit = weighted_low_rank(W, x.T @ x)
        left, right = fit.factors(3)
        np.testing.assert_allclose(x @ (left @ right).T, x @ W.T, atol=1e-3)
        assert np.isfinite(left).all()
        assert np.isfinite(right).all()

    def test_invalid_moments_and_ridge(self):
        W = np.ones((2, 3))
        with pytest.raises(MPOError, match="the moments of the inputs of matrix must be of shape"):
            weighted_low_rank(W, np.eye(2))
        with pytest.raises(MPOError, match="hold|holds"):
            weighted_low_rank(W, np.full((3, 3), np.nan))
        with pytest.raises(MPOError, match="negative trace"):
            weighted_low_rank(W, -np.eye(3))
        with pytest.raises(MPOError, match="ridge must be"):
            weighted_low_rank(W, ridge=-1.0)
