"""Low rank in interpolative form with rows and coefficients in few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from second_moments import second_moments

from mpochain.decomposition import Interpolation, interpolative, weighted_low_rank
from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.quantization import BITS, Scheme, Triangle, interpolation, nearest


def problem(rows=60, columns=44, rank=16):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    H, G = second_moments(columns, seed=1), second_moments(rows, seed=2)
    inputs, outputs = Triangle.of(H, 0.01), Triangle.of(G, 1.0)
    factors = weighted_low_rank(matrix, inputs.moments, outputs.moments).factors(rank)
    return matrix, interpolative(*factors), H, G


def relative_error(matrix, other, inputs, outputs):
    def squared(error):
        return float((outputs.moments @ error @ inputs.moments * error).sum())

    return (squared(matrix.double() - other.double()) / squared(matrix.double())) ** 0.5


@pytest.mark.parametrize("bits", BITS)
def test_error_beside_that_of_rounding_each_factor_to_nearest(bits):
    matrix, low_rank, H, G = problem()
    inputs, outputs = Triangle.of(H, 0.01), Triangle.of(G, 1.0)
    scheme = Scheme(bits, 16)
    once, twice = (interpolation(matrix, low_rank, scheme, inputs, outputs, rounds=rounds) for rounds in (1, 2))
    for short in (once, twice):
        exact = relative_error(matrix, short.dequantized(torch.float64).to_matrix(), inputs, outputs)
        assert short.relative_error == pytest.approx(exact, rel=1e-4)
    apart = Interpolation(
        nearest(low_rank.rows, scheme).dequantized(),
        nearest(low_rank.coefficients, scheme).dequantized(),
        low_rank.permutation,
    )
    lowest = relative_error(matrix, low_rank.to_matrix(), inputs, outputs)
    to_nearest = relative_error(matrix, apart.to_matrix(), inputs, outputs)
    assert lowest < twice.relative_error <= once.relative_error
    # Most of what rounding adds is gone.
    assert twice.relative_error**2 - lowest**2 < 0.5 * (to_nearest**2 - lowest**2)
    if bits == 2:
        assert twice.relative_error < 0.98 * once.relative_error
    assert twice.bytes == scheme.bytes(16, 44) + scheme.bytes(44, 16)


def test_moments_are_damped_as_in_rounding():
    matrix, low_rank, H, G = problem()
    by_tensors = interpolation(matrix, low_rank, Scheme(3), H, G)
    by_triangles = interpolation(matrix, low_rank, Scheme(3), Triangle.of(H, 0.01), Triangle.of(G, 1.0))
    assert torch.equal(by_tensors.rows.codes, by_triangles.rows.codes)
    assert torch.equal(by_tensors.coefficients.codes, by_triangles.coefficients.codes)


def test_rows_and_coefficients_of_different_bits():
    matrix, low_rank, H, _ = problem()
    short = interpolation(matrix, low_rank, Scheme(4, 8), H, None, coefficient_scheme=Scheme(2, 16, symmetric=True))
    assert (short.rows.scheme, short.coefficients.scheme) == (Scheme(4, 8), Scheme(2, 16, symmetric=True))
    assert short.dequantized().to_matrix().shape == matrix.shape


def test_all_rows_selected():
    matrix = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 4, 0, 2])
    permutation = tuple(np.argsort(order.numpy()).tolist())
    low_rank = Interpolation(matrix[order], torch.zeros(0, 5), permutation)
    short = interpolation(matrix, low_rank, Scheme(8, 10))
    assert short.coefficients is None
    assert short.bytes == Scheme(8, 10).bytes(5, 20)
    assert short.relative_error < 0.01
    torch.testing.assert_close(short.dequantized().to_matrix(), matrix, rtol=0, atol=0.02)


@pytest.mark.parametrize("bits", BITS)
def test_moments_of_few_tokens_and_zero_weights(bits):
    matrix, low_rank, _, _ = problem()
    x, g = (torch.randn(3, size, generator=torch.Generator().manual_seed(0)) for size in (44, 60))
    short = interpolation(matrix, low_rank, Scheme(bits, 16), x.T @ x, g.T @ g)
    short.rows.require_valid()
    short.coefficients.require_valid()
    assert short.relative_error < 1.0
    zero = Interpolation(torch.zeros(16, 44), torch.zeros(44, 16), low_rank.permutation)
    assert interpolation(torch.zeros(60, 44), zero, Scheme(bits), x.T @ x).relative_error == 0.0


def test_what_does_not_fit():
    matrix, low_rank, H, G = problem()
    with pytest.raises(ShapeError, match=r"interpolation of up, a 60x44 matrix, must have rows \(r, 44\)"):
        interpolation(
            matrix, Interpolation(low_rank.rows, low_rank.coefficients[1:], low_rank.permutation), Scheme(3), name="up"
        )
    with pytest.raises(ShapeError, match="weights of the outputs of up"):
        interpolation(matrix, low_rank, Scheme(3), H, H, name="up")
    with pytest.raises(NonFiniteError, match="up of shape"):
        interpolation(matrix * torch.nan, low_rank, Scheme(3), H, G, name="up")
    large = Interpolation(low_rank.rows * 1e9, low_rank.coefficients, low_rank.permutation)
    with pytest.raises(ArgumentError, match="largest entry of the rows of up is .* too large"):
        interpolation(matrix, large, Scheme(3), H, G, name="up")
    with pytest.raises(ArgumentError, match="rounds must be a positive integer, got 0"):
        interpolation(matrix, low_rank, Scheme(3), H, G, rounds=0)
