"""Calibrated chains and sums of chains against dense algebra and the closed form of low rank."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, matrix, specs

from mpochain import ChainSpec, MPOChain, MPOError, shapes
from mpochain.decomposition import calibrated, weighted_low_rank

SIZES = st.integers(1, 12)
LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


def moments(random, size, samples=200):
    x = random.normal(size=(samples, size)) * np.exp(random.normal(size=size))
    return x.T @ x / samples


def matrix_of(fit, specs):
    return sum(
        MPOChain(tuple(cores), spec).to_matrix()
        for cores, spec in zip(fit.terms, specs if isinstance(specs, tuple | list) else [specs], strict=True)
    )


def weighted(W, H, G):
    return float(np.trace(G @ W @ H @ W.T))


@st.composite
def cases(draw, **options):
    spec = draw(specs(max_sites=3, max_entries=3000, **options))
    seed = draw(SEEDS)
    random = np.random.default_rng(seed)
    H, G = moments(random, spec.in_features), moments(random, spec.out_features)
    return matrix(spec, seed), spec, H, G


@settings(max_examples=20)
@given(cases())
def test_error_never_increases_and_equals_the_dense_one(case):
    W, spec, H, G = case
    fit = calibrated(W, spec, H, G, ridge=0.0, iterations=8)
    assert all(after <= before * (1 + 1e-12) for before, after in zip(fit.errors, fit.errors[1:], strict=False))
    assert [core.shape for core in fit.terms[0]] == list(spec.core_shapes)
    assert fit.scale == pytest.approx(weighted(W, H, G))
    assert fit.errors[-1] == pytest.approx(weighted(W - matrix_of(fit, spec), H, G), rel=1e-6, abs=1e-10 * fit.scale)
    assert fit.relative_error <= 1 + 1e-9, "never worse than a zero matrix"


@settings(max_examples=20)
@given(cases(full=True))
def test_full_bonds_are_exact(case):
    W, spec, H, G = case
    np.testing.assert_allclose(matrix_of(calibrated(W, spec, H, G, iterations=3), spec), W, atol=1e-6)


@given(SIZES, SIZES, st.integers(1, 4), SEEDS, st.booleans(), st.booleans())
def test_a_low_rank_spec_is_the_closed_form(out, in_, rank, seed, inputs, outputs):
    random = np.random.default_rng(seed)
    W = random.normal(size=(out, in_))
    H, G = (moments(random, in_) if inputs else None), (moments(random, out) if outputs else None)
    spec = shapes.low_rank(out, in_, rank)
    closed = weighted_low_rank(W, H, G)
    fit = calibrated(W, spec, H, G)
    assert fit.relative_error == pytest.approx(closed.relative_error(spec.bonds[0]), rel=1e-6, abs=1e-7)


@settings(max_examples=20)
@given(cases(padding=False, min_sites=2), st.integers(1, 3))
def test_a_sum_is_never_worse_than_its_low_rank_alone(case, rank):
    W, spec, H, G = case
    low = shapes.low_rank(*spec.shape, rank)
    alone = weighted_low_rank(W, H, G).relative_error(low.bonds[0])
    fit = calibrated(W, [low, spec.with_bonds(1)], H, G, iterations=5)
    assert fit.relative_error <= alone * (1 + 1e-9) + 1e-9


def test_converges_to_a_stationary_point():
    """Every core solves its own linear least squares problem, given the others."""
    random = np.random.default_rng(0)
    spec = ChainSpec((3, 2, 2), (2, 2, 3), 3)
    W, H, G = random.normal(size=spec.shape), moments(random, 12), moments(random, 12)
    fit = calibrated(W, spec, H, G, ridge=0.0, iterations=3000)
    cores = list(fit.terms[0])
    root_h, root_g = np.linalg.cholesky(H), np.linalg.cholesky(G)
    for site, core in enumerate(cores):
        columns = []
        for k in range(core.size):
            unit = np.zeros(core.size)
            unit[k] = 1.0
            changed = [*cores[:site], unit.reshape(core.shape), *cores[site + 1 :]]
            columns.append((root_g.T @ MPOChain(tuple(changed), spec).to_matrix() @ root_h).ravel())
        goal = (root_g.T @ W @ root_h).ravel()
        solution = np.linalg.lstsq(np.array(columns).T, goal, rcond=None)[0]
        least = float(np.square(goal - np.array(columns).T @ solution).sum())
        assert fit.errors[-1] == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_inputs_in_a_subspace(shape):
    random = np.random.default_rng(0)
    W, x = random.normal(size=shape), random.normal(size=(2, shape[1]))
    terms = [shapes.low_rank(*shape, 1), ChainSpec((3, shape[0] // 3), (3, shape[1] // 3), 2)]
    fit = calibrated(W, terms, x.T @ x, iterations=200)
    assert all(np.isfinite(core).all() for cores in fit.terms for core in cores)
    y = x @ W.T
    np.testing.assert_allclose(
        np.linalg.norm(y - x @ matrix_of(fit, terms).T) / np.linalg.norm(y), fit.relative_error, atol=1e-4
    )
    nothing = calibrated(W, terms, np.zeros((shape[1], shape[1])))
    assert nothing.relative_error == 0.0
    assert all(np.isfinite(core).all() for cores in nothing.terms for core in cores)


def test_zero_matrix():
    fit = calibrated(np.zeros((4, 6)), ChainSpec((2, 2), (2, 3), 2))
    assert fit.relative_error == 0.0
    assert not matrix_of(fit, ChainSpec((2, 2), (2, 3), 2)).any()


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_entries_whose_squares_overflow_or_underflow(size):
    W = np.random.default_rng(0).normal(size=(4, 6))
    spec = ChainSpec((2, 2), (2, 3), 2)
    np.testing.assert_allclose(matrix_of(calibrated(size * W, spec), spec) / size, matrix_of(calibrated(W, spec), spec))


# Not JAX in float32 too, and only one term: it compiles each product of each shape.
@pytest.mark.parametrize(
    ("library", "precision"), [("numpy", "float32"), ("torch", "float32"), ("torch", "float64"), ("jax", "float64")]
)
def test_every_library_in_float32(library, precision):
    random = np.random.default_rng(0)
    W, H = random.normal(size=(8, 6)).astype(np.float32), moments(random, 6).astype(np.float32)
    terms = (
        [ChainSpec((4, 2), (2, 3), 2)] if library == "jax" else [shapes.low_rank(8, 6, 1), ChainSpec((4, 2), (2, 3), 2)]
    )
    make = LIBRARIES[library]
    fit = calibrated(make(W), terms, make(H), precision=precision, iterations=1)
    assert type(fit.terms[0][0]) is type(make(W))
    assert "float32" in str(fit.terms[-1][0].dtype)
    expected = calibrated(W, terms, H, iterations=1).relative_error
    assert fit.relative_error == pytest.approx(expected, rel=1e-3)


def test_deterministic():
    random = np.random.default_rng(0)
    W, H = random.normal(size=(12, 12)), moments(random, 12)
    first, second = (calibrated(W, ChainSpec((3, 4), (4, 3), 3), H) for _ in range(2))
    assert first.errors == second.errors
    for a, b in zip(first.terms[0], second.terms[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matrix": np.full((4, 6), np.nan), "name": "up"}, "up of shape"),
        ({"matrix": np.ones(4)}, "must be a matrix"),
        ({"matrix": np.ones((4, 6), dtype=int)}, "elements of type int64"),
        ({"matrix": np.ones((4, 5))}, "but out_dims"),
        ({"gram": np.eye(4)}, "the moments of the inputs of matrix must be of shape"),
        ({"gram": np.full((6, 6), np.inf)}, "the moments of the inputs of matrix of shape"),
        ({"output_gram": np.eye(6)}, "the weights of the outputs of matrix must be of shape"),
        ({"terms": []}, "at least one spec"),
        ({"iterations": -1}, "iterations must be"),
        ({"iterations": True}, "iterations must be"),
        ({"precision": "float16"}, "precision must be"),
        ({"ridge": -1.0}, "ridge must be"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(MPOError, match=message):
        calibrated(**{"matrix": np.ones((4, 6)), "terms": ChainSpec((2, 2), (2, 3), 2), **arguments})
