"""Numbers of any size: a factor of the matrix is a factor of its decomposition, and errors stay true."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpochain import ChainSpec, MPOChain, MPOError, decompose, decompose_terms, shapes
from mpochain.decomposition import (
    SPLITS,
    calibrated,
    interpolative,
    permuted_kronecker,
    split_off,
    weighted_low_rank,
)

SPEC = ChainSpec((2, 4), (4, 2), 5)
W = np.random.default_rng(0).normal(size=(8, 8))
W /= np.abs(W).max()

# Powers of two that keep all entries of W, of which the smallest is 0.02, normal and finite.
EXPONENTS = {"float16": (-8, 15), "bfloat16": (-118, 127), "float32": (-118, 127), "float64": (-1014, 1023)}


def numbers(array):
    return np.asarray(array.detach().double() if isinstance(array, torch.Tensor) else array, dtype=np.float64)


def dense(cores):
    """Product of two cores ``(1, o, i, r)`` and ``(r, o, i, 1)``, as ``(o, i, o, i)``."""
    a, b = map(numbers, cores)
    return (a.reshape(-1, a.shape[3]) @ b.reshape(b.shape[0], -1)).reshape(*a.shape[1:3], *b.shape[1:3])


def matrix_of(cores, exponent):
    """The matrix of two cores divided by a power of two, in float64."""
    half = exponent // 2
    scaled = (np.ldexp(numbers(core), -power) for core, power in zip(cores, (half, exponent - half), strict=True))
    tensor = dense(list(scaled))
    return tensor.transpose(0, 2, 1, 3).reshape(8, 8)


@given(st.sampled_from(sorted(EXPONENTS)), st.floats(0, 1), st.sampled_from(sorted(SPLITS)), st.booleans())
def test_a_power_of_two_of_a_matrix_is_one_of_its_chain(dtype, position, algorithm, cutoff):
    low, high = EXPONENTS[dtype]
    exponent = round(low + position * (high - low))
    unit = torch.tensor(W).to(getattr(torch, dtype))
    scaled = (unit.double() * 2.0**exponent).to(unit.dtype)
    limits = {"cutoff": 0.3} if cutoff else {}
    before, after = (decompose(matrix, SPEC, method=algorithm, **limits) for matrix in (unit, scaled))
    assert after.spec == before.spec
    assert after.dtype == unit.dtype
    assert all(core.isfinite().all() for core in after.cores)
    short = dtype in ("float16", "bfloat16")
    assert after.relative_error == pytest.approx(before.relative_error, rel=2e-2 if short else 1e-5)
    # The reported error is the measured one, in float64.
    error = np.linalg.norm(matrix_of(after.cores, exponent) - numbers(unit)) / np.linalg.norm(numbers(unit))
    assert after.relative_error == pytest.approx(error, rel=1e-2 if short else 1e-4)


def test_a_jax_array_near_the_limits():
    chain = decompose(jnp.asarray(np.ldexp(W, 127).astype(np.float32)), SPEC)
    assert chain.relative_error == pytest.approx(decompose(W, SPEC).relative_error, rel=1e-4)
    assert all(np.isfinite(numbers(core)).all() for core in chain.cores)


LIMITS = [("float32", 127), ("float32", -120), ("float64", 1023), ("float64", -1010)]


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize(("dtype", "exponent"), LIMITS)
def test_the_algebra_of_chains_near_the_limits(library, dtype, exponent):
    matrix = library(np.ldexp(W, exponent).astype(dtype))
    chain = decompose(matrix, SPEC)
    unit = decompose(library(W.astype(dtype)), SPEC)
    assert chain.relative_error == pytest.approx(unit.relative_error, rel=1e-5)
    assert chain.relative_error_to(matrix) == pytest.approx(unit.relative_error, rel=1e-4)
    short, reference = chain.truncate(2), unit.truncate(2)
    assert short.relative_error == pytest.approx(reference.relative_error, rel=1e-4)
    np.testing.assert_allclose(matrix_of(short.cores, exponent), matrix_of(reference.cores, 0), rtol=1e-4, atol=1e-5)
    half = chain * 0.25
    for result in (chain + (-1.0) * half, half - chain, chain.T * 0.5, (chain * 2.0**-60) * 2.0**58):
        assert all(np.isfinite(numbers(core)).all() for core in result.cores)
    total = half + half
    np.testing.assert_allclose(matrix_of(total.cores, exponent), matrix_of(chain.cores, exponent) / 2, atol=1e-5)
    # The norm of a float64 matrix may exceed float64.
    expected = unit.norm() * 2.0 ** min(exponent, 1000)
    if exponent < 1000:
        assert chain.norm() == pytest.approx(expected, rel=1e-4)
    else:
        assert chain.norm() > expected


def test_subnormal_and_largest_numbers():
    for number in (np.finfo(np.float64).max, np.float64(5e-324), np.float32(3e-45)):
        values = np.full((8, 8), number)
        chain = decompose(values, SPEC)
        assert all(np.isfinite(core).all() and core.any() for core in chain.cores)
        assert chain.relative_error < 1e-6
        assert chain.relative_error_to(values) < 1e-6


def test_the_norm_of_a_canonical_form_must_fit_its_element_type():
    chain = decompose(np.full((8, 8), 3e38, np.float32), SPEC)
    with pytest.raises(MPOError, match="exceeds its element type; use float64"):
        chain.canonicalize(0)
    fine = MPOChain(tuple(core.astype(np.float64) for core in chain.cores), chain.spec).canonicalize(0)
    assert np.linalg.norm(fine.cores[0]) == pytest.approx(8 * 3e38, rel=1e-5)


@pytest.mark.parametrize("exponent", [-1000, -500, 500, 1000])
def test_every_other_decomposition_scales_with_its_matrix(exponent):
    scaled = np.ldexp(W, exponent)
    specs = [shapes.low_rank(8, 8, 2), ChainSpec((2, 4), (4, 2), 1)]
    moments = np.diag(np.arange(1.0, 9.0))

    def errors(matrix, power):
        gram = np.ldexp(moments, power)
        kronecker = ChainSpec((4, 2), (4, 2), 2)
        sums = decompose_terms(matrix, specs)
        results = [
            weighted_low_rank(matrix, gram).relative_error(3),
            calibrated(matrix, specs, gram, iterations=5).relative_error,
            permuted_kronecker(matrix, kronecker, steps=3).relative_error,
            split_off(matrix, [(2, 2)], 2, permuted=False).relative_error,
            *(term.relative_error for term in sums),
        ]
        factors = [
            *calibrated(matrix, specs[1], gram, iterations=5).terms[0],
            *permuted_kronecker(matrix, kronecker, steps=3).cores,
            *split_off(matrix, [(2, 2)], 2, permuted=False).cores,
            *(core for term in sums for core in term.cores),
        ]
        assert all(np.isfinite(factor).all() and factor.any() for factor in factors)
        return results

    np.testing.assert_allclose(errors(scaled, exponent // 2), errors(W, 0), rtol=1e-6)
    left, right = weighted_low_rank(scaled).factors(3)
    short = interpolative(left, right)
    np.testing.assert_allclose(np.ldexp(short.to_matrix(), -exponent), np.ldexp(left @ right, -exponent), atol=1e-9)


def test_float16_chains_whose_norm_exceeds_float16():
    matrix = torch.tensor(W * 6e4).half()
    chain = decompose(matrix, SPEC)
    assert chain.norm() > 65504
    for result in (chain.truncate(2), chain.truncate(cutoff=0.5), chain * 0.5 + chain * 0.5):
        assert all(core.isfinite().all() for core in result.cores)
    assert chain.truncate(2).relative_error_to(chain.to_matrix()) < 1
    with pytest.raises(MPOError, match="exceeds its element type"):
        (chain * 2.0**5).canonicalize()
    with pytest.raises(MPOError, match="exceed the range of float16"):
        (chain @ chain.T) @ (chain @ chain.T)


def test_an_underflow_makes_no_product_exact():
    chain = decompose(np.ldexp(W, -1000), SPEC)
    product = chain.T @ chain
    assert product.error_is_bound
    assert product.relative_error > 0
