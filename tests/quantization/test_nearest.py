"""The grids of groups, and rounding to the nearest of their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpochain.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from mpochain.quantization import BITS, Scheme, nearest


def relative_error(matrix, short):
    return float((matrix - short.dequantized()).norm() / matrix.norm())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.007), (4, 0.1), (3, 0.2), (2, 0.4)])
def test_error_of_normal_weights(bits, error, symmetric):
    matrix = torch.randn(20, 150, generator=torch.Generator().manual_seed(0))
    short = nearest(matrix, Scheme(bits, symmetric=symmetric))
    short.require_valid()
    assert relative_error(matrix, short) < error


@settings(max_examples=30)
@given(
    st.sampled_from(BITS),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([(1, 1), (1, 7), (6, 1), (3, 8)]),
    st.integers(0, 2**16),
    st.integers(-13, 10),
)
def test_values_are_the_nearest_of_the_grid(bits, group, symmetric, shape, seed, exponent):
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=random)
    matrix *= 2.0**exponent / matrix.abs().max()
    short = nearest(matrix, Scheme(bits, group, symmetric))
    short.require_valid()
    distance = (matrix - short.dequantized()).abs()
    for code in range(2**bits):
        other = type(short)(torch.full_like(short.codes, code), short.scales, short.zeros, short.scheme).dequantized()
        assert bool((distance <= (matrix - other).abs() * (1 + 1e-5) + 1e-12 * 2.0**exponent).all())
    # Less than rounding to a grid over the range of the values alone: the group is at worst set to zero.
    assert float(distance.norm()) <= float(matrix.norm()) * 1.001


@pytest.mark.parametrize("bits", BITS)
def test_grids_of_a_search_are_better_than_those_of_the_range(bits):
    matrix = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    by_range = (((matrix / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step
    assert relative_error(matrix, nearest(matrix, Scheme(bits))) < float((matrix - by_range).norm() / matrix.norm())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_constant_groups_are_exact_but_for_their_scale(bits, symmetric):
    matrix = torch.cat([torch.zeros(1, 9), torch.full((1, 9), 0.3), torch.full((1, 9), -7e-3)])
    values = nearest(matrix, Scheme(bits, 4, symmetric)).dequantized()
    assert torch.equal(values[0], matrix[0])
    # 11 significant bits of the scale, and of a step that is subtracted from the middle code.
    torch.testing.assert_close(values, matrix, rtol=2**-10, atol=0)


def test_columns_of_more_weight_are_rounded_better():
    matrix = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(16)
    weights[3] = 50.0
    weights[5] = 0.0
    plain, weighted = (nearest(matrix, Scheme(2, 16), w).dequantized() for w in (None, weights))
    error = ((matrix - plain).square() @ weights).sum()
    assert ((matrix - weighted).square() @ weights).sum() < 0.8 * error
    assert torch.equal(nearest(matrix, Scheme(2, 16), torch.zeros(16)).codes, nearest(matrix, Scheme(2, 16)).codes)
    with pytest.raises(ShapeError, match=r"column weights must have shape \(16,\), got \(15,\)"):
        nearest(matrix, Scheme(2), weights[:15])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("size", "kind"), [(1e8, "large"), (1e-8, "small"), (1e-300, "small"), (1e300, "large")])
def test_what_float16_scales_cannot_hold_is_refused(bits, size, kind):
    with pytest.raises(ArgumentError, match=f"largest entry of up is .* too {kind} for float16 scales at {bits} bits"):
        nearest(torch.full((2, 2), size, dtype=torch.float64), Scheme(bits), name="up")


def test_a_group_too_small_beside_the_others_is_rounded_to_what_float16_holds():
    matrix = torch.ones(2, 8)
    matrix[1] = 1e-9
    values = nearest(matrix, Scheme(3, 8)).dequantized()
    assert bool((values[1].abs() <= 2e-9).all())
    torch.testing.assert_close(values[0], matrix[0], rtol=2**-11, atol=0)


def test_any_float_type_and_layout():
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nearest(matrix, Scheme(8, 2))
    assert torch.equal(nearest(matrix.T.contiguous().T, Scheme(8, 2)).codes, expected.codes)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        short = nearest(matrix.to(dtype).requires_grad_(), Scheme(8, 2))
        assert not short.scales.requires_grad
        torch.testing.assert_close(short.dequantized(), matrix.to(dtype).float(), rtol=0, atol=0.02)


def test_what_is_no_matrix_of_numbers():
    with pytest.raises(NonFiniteError, match="1 NaN"):
        nearest(torch.tensor([[1.0, torch.nan]]), Scheme(4))
    with pytest.raises(DTypeError, match="int64"):
        nearest(torch.ones(2, 2, dtype=torch.int64), Scheme(4))
    for shape in ((3,), (2, 0), (1, 2, 3)):
        with pytest.raises(ShapeError, match="must be a matrix"):
            nearest(torch.ones(shape), Scheme(4))
