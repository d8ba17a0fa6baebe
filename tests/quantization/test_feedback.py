"""Rounding with feedback: its definition entry by entry, and its errors beside those of rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from second_moments import second_moments, squared_error

from mpochain.decomposition import interpolative
from mpochain.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from mpochain.quantization import BITS, Scheme, Triangle, input_feedback, interpolation, nearest, two_sided
from mpochain.quantization.codes import by_column
from mpochain.quantization.triangle import input_triangle, output_triangle


def weights(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def entry_by_entry(matrix, short, inputs, outputs):
    """Codes by the definition in float64: each entry rounded on the grids of ``short`` given those before it."""
    rows, columns = matrix.shape
    scheme = short.scheme
    zeros = torch.full_like(short.scales, scheme.middle_code) if short.zeros is None else short.zeros
    row_factor, column_factor = outputs.of_outputs(), inputs.of_inputs(scheme.group)
    order = row_factor.order[:, None], column_factor.order
    w, scale, zero = (
        tensor.double()[order]
        for tensor in (matrix, by_column(short.scales, scheme, columns), by_column(zeros, scheme, columns))
    )
    A, B = row_factor.unit.double(), torch.linalg.inv(column_factor.inverse.double())
    error, codes = torch.zeros(rows, columns, dtype=torch.float64), torch.zeros(rows, columns, dtype=torch.uint8)
    for j in range(columns):
        for i in range(rows):
            value = w[i, j] + A[i, : i + 1] @ error[: i + 1, : j + 1] @ B[j, : j + 1]
            code = (value / scale[i, j] + zero[i, j]).round().clamp(0, scheme.largest_code)
            codes[i, j] = code
            error[i, j] = w[i, j] - (code - zero[i, j]) * scale[i, j]
    result = torch.empty_like(codes)
    result[order] = codes
    return result


@pytest.mark.parametrize(
    ("rows", "columns", "scheme"),
    [
        (67, 9, Scheme(3, 4)),
        (5, 70, Scheme(2, 66)),
        (1, 7, Scheme(3, 3, symmetric=True)),
        (7, 1, Scheme(4)),
        (12, 10, Scheme(8, 1)),
    ],
)
def test_each_entry_is_rounded_given_those_before_it(rows, columns, scheme):
    matrix = weights(rows, columns)
    H = Triangle.of(second_moments(columns, seed=1, outliers=1), 0.01)
    G = Triangle.of(second_moments(rows, seed=2, outliers=1), 0.1)
    short = two_sided(matrix, scheme, H, G)
    assert torch.equal(short.codes, entry_by_entry(matrix, short, H, G))
    one_sided = input_feedback(matrix, scheme, H)
    equal = Triangle.of(torch.eye(rows), 0.0)
    assert torch.equal(one_sided.codes, entry_by_entry(matrix, one_sided, H, equal))
    both = two_sided(matrix, scheme, H, torch.zeros(rows, rows))  # zero moments: equal weights
    assert torch.equal(both.codes, one_sided.codes)
    assert torch.equal(both.scales, one_sided.scales)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_without_correlations_it_is_rounding_to_nearest(bits, symmetric):
    matrix, scheme = weights(70, 33), Scheme(bits, 10, symmetric)
    expected = nearest(matrix, scheme)
    for short in (
        input_feedback(matrix, scheme, None),
        two_sided(matrix, scheme, torch.eye(33), None),
    ):
        # But for steps of equal error, between which rounding errors of float32 decide.
        assert float((short.codes == expected.codes).float().mean()) > 0.95
        errors = [float((matrix - rounded.dequantized()).norm()) for rounded in (short, expected)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        assert short.zeros is None if symmetric else torch.equal(short.zeros, expected.zeros)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("bits", BITS)
def test_the_error_is_at_most_that_of_rounding_to_nearest(bits, power):
    matrix, scheme = weights(90, 130, seed=bits), Scheme(bits, 32)
    H, G = second_moments(130, power, seed=1), second_moments(90, power, seed=2)
    inputs, outputs = input_triangle(H, 130, ""), output_triangle(G, 90, "")
    plain = nearest(matrix, scheme, H.diagonal())
    one_sided, both = input_feedback(matrix, scheme, H), two_sided(matrix, scheme, H, G)
    both.require_valid()
    assert squared_error(matrix, one_sided, inputs.moments) < 0.9 * squared_error(matrix, plain, inputs.moments)
    errors = [squared_error(matrix, short, inputs.moments, outputs.moments) for short in (both, one_sided, plain)]
    assert errors[0] < 0.99 * errors[1] < 0.9 * errors[2]


def test_a_triangle_serves_several_roundings():
    matrix = weights(20, 30)
    H, G = second_moments(30), second_moments(20)
    inputs, outputs = Triangle.of(H, 0.01), Triangle.of(G, 1.0)
    for scheme in (Scheme(3, 8), Scheme(2, 8), Scheme(3, 30)):
        expected = two_sided(matrix, scheme, H, G)
        assert torch.equal(two_sided(matrix, scheme, inputs, outputs).codes, expected.codes)
        assert torch.equal(two_sided(matrix, scheme, H * 1e-12, G * 1e12).codes, expected.codes)
    assert inputs.of_inputs(8) is inputs.of_inputs(8)
    assert not torch.equal(input_feedback(matrix, Scheme(2), Triangle.of(H, 1.0)).codes, expected.codes)


@pytest.mark.parametrize("bits", BITS)
def test_moments_of_few_tokens_and_of_unused_inputs(bits):
    matrix = weights(12, 40)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    x[:, 5:20] = 0.0
    g = torch.zeros(12)
    g[3] = 1.0
    for short in (
        input_feedback(matrix, Scheme(bits, 8), x.T @ x),
        two_sided(matrix, Scheme(bits, 8), x.T @ x, torch.outer(g, g)),
        two_sided(matrix, Scheme(bits, 8), torch.zeros(40, 40), torch.zeros(12, 12)),
    ):
        short.require_valid()
        # What no input shows keeps its value.
        assert float((matrix - short.dequantized()).norm() / matrix.norm()) < {8: 0.1, 4: 0.3, 3: 0.6, 2: 1.1}[bits]


def test_rows_and_groups_of_zeros_stay_zero():
    matrix = weights(9, 24)
    matrix[4] = 0.0
    short = input_feedback(matrix, Scheme(3, 8), second_moments(24))
    assert not short.dequantized()[4].any()
    zero = two_sided(torch.zeros(9, 24), Scheme(2, 8), second_moments(24), second_moments(9))
    assert not zero.dequantized().any()


def test_any_float_type():
    matrix = weights(9, 24)
    H, G = second_moments(24), second_moments(9)
    for dtype in (torch.float64, torch.bfloat16):
        expected = two_sided(matrix.to(dtype).float(), Scheme(3, 8), H, G)
        assert torch.equal(two_sided(matrix.to(dtype), Scheme(3, 8), H, G).codes, expected.codes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_defaults_of_torch_do_not_matter(dtype):
    matrix, H, G = weights(9, 24), second_moments(24), second_moments(9)
    low_rank = interpolative(torch.eye(9)[:, :4].contiguous(), matrix[:4])

    def results():
        return (
            nearest(matrix, Scheme(3)),
            input_feedback(matrix, Scheme(3), H),
            two_sided(matrix, Scheme(3), H, G),
            interpolation(matrix, low_rank, Scheme(3), H, None).rows,
        )

    expected = results()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            for short, reference in zip(results(), expected, strict=True):
                assert torch.equal(short.codes, reference.codes)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_rounded():
    matrix, H, G = weights(9, 24), second_moments(24), second_moments(9)
    with pytest.raises(ShapeError, match=r"moments of the inputs of up must be of shape \(24, 24\), got \(9, 9\)"):
        input_feedback(matrix, Scheme(3), G, name="up")
    with pytest.raises(ShapeError, match=r"weights of the outputs of up must be of shape \(9, 9\), got \(24, 24\)"):
        two_sided(matrix, Scheme(3), H, Triangle.of(H, 1.0), name="up")
    with pytest.raises(NonFiniteError, match="up of shape"):
        two_sided(matrix * torch.inf, Scheme(3), H, G, name="up")
    with pytest.raises(NonFiniteError, match="moments of the inputs of up"):
        two_sided(matrix, Scheme(3), H * torch.nan, G, name="up")
    with pytest.raises(ArgumentError, match="too large for float16 scales"):
        input_feedback(matrix * 1e9, Scheme(3), H)
    with pytest.raises(ArgumentError, match="damping of the moments must be a number of at least 0, got -1"):
        Triangle.of(H, -1.0)
    with pytest.raises(DTypeError, match="up must be a torch tensor, got a ndarray"):
        nearest(matrix.numpy(), Scheme(3), name="up")
    with pytest.raises(ArgumentError, match=r"scheme of up must be a Scheme, such as Scheme\(4\), got an int"):
        nearest(matrix, 3, name="up")
    with pytest.raises(
        DTypeError, match="moments of the inputs of up must be a torch tensor or a Triangle, got a list"
    ):
        input_feedback(matrix, Scheme(3), [1.0], name="up")
