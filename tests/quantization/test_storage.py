"""Schemes, packed codes and their bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpochain.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from mpochain.quantization import BITS, Quantized, Scheme, packed, unpacked

SCHEMES = st.builds(Scheme, st.sampled_from(BITS), st.integers(1, 70), st.booleans())


def random_matrix(scheme, rows, columns, seed=0):
    random = torch.Generator().manual_seed(seed)
    top, groups = scheme.largest_code + 1, scheme.groups(columns)
    codes = torch.randint(top, (rows, columns), generator=random, dtype=torch.uint8)
    zeros = torch.randint(top, (rows, groups), generator=random, dtype=torch.uint8)
    scales = torch.rand(rows, groups, generator=random).to(torch.float16)
    return Quantized(codes, scales, None if scheme.symmetric else zeros, scheme)


@given(st.sampled_from(BITS), st.integers(1, 9), st.integers(1, 140), st.integers(0, 2**16))
def test_packed_codes_are_restored_and_take_the_stated_words(bits, rows, columns, seed):
    codes = random_matrix(Scheme(bits), rows, columns, seed).codes
    words = packed(codes, bits)
    assert words.shape == (rows, Scheme(bits).words(columns))
    assert 0 <= 32 * words.shape[1] - bits * columns < 32
    assert torch.equal(unpacked(words, bits, columns), codes)
    # The stream as one integer a row is the definition.
    for row, stream in zip(codes.tolist(), words.tolist(), strict=True):
        expected = sum(code << (bits * position) for position, code in enumerate(row))
        assert sum((word % 2**32) << (32 * position) for position, word in enumerate(stream)) == expected


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_are_those_of_compressed_tensors(bits):
    """Its pack-quantized format: 32 // bits codes in a word, the first in the lowest bits."""
    codes = random_matrix(Scheme(bits), 3, 45).codes
    count = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -45 % count)).to(torch.int64).view(3, -1, count)
    expected = (padded << (torch.arange(count) * bits)).sum(dim=-1)
    assert torch.equal(packed(codes, bits).to(torch.int64) % 2**32, expected)


@given(SCHEMES, st.integers(1, 5), st.integers(1, 140), st.integers(0, 2**16))
def test_bytes_are_those_of_the_tensors(scheme, rows, columns, seed):
    matrix = random_matrix(scheme, rows, columns, seed)
    tensors = [packed(matrix.codes, scheme.bits), matrix.scales, *([] if matrix.zeros is None else [matrix.zeros])]
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert matrix.bytes == scheme.bytes(rows, columns) == stored
    assert scheme.bits_per_weight(rows, columns) == 8 * stored / (rows * columns)


@given(SCHEMES, st.integers(1, 5), st.integers(1, 140), st.integers(0, 2**16))
def test_the_last_group_is_shorter(scheme, rows, columns, seed):
    matrix = random_matrix(scheme, rows, columns, seed)
    matrix.require_valid()
    dense = matrix.dequantized(torch.float64)
    for column in range(columns):
        group = column // scheme.group
        zero = scheme.middle_code if matrix.zeros is None else matrix.zeros[:, group].double()
        expected = (matrix.codes[:, column].double() - zero) * matrix.scales[:, group].double()
        assert torch.equal(dense[:, column], expected)
    assert torch.equal(matrix.dequantized(torch.bfloat16), matrix.dequantized().to(torch.bfloat16))


@pytest.mark.parametrize("bits", [0, 1, 5, 16, 4.0, True, "4", None])
def test_bits_that_are_not_offered(bits):
    with pytest.raises(ArgumentError, match="bits must be one of 8, 4, 3, 2, got"):
        Scheme(bits)


@pytest.mark.parametrize("arguments", [{"group": 0}, {"group": -1}, {"group": 2.0}, {"group": True}, {"symmetric": 1}])
def test_settings_of_another_kind(arguments):
    with pytest.raises(ArgumentError, match=f"{next(iter(arguments))} must be"):
        Scheme(4, **arguments)


def test_what_cannot_be_packed():
    with pytest.raises(ArgumentError, match="a 3-bit code is at most 7, got 8"):
        packed(torch.tensor([[8]], dtype=torch.uint8), 3)
    with pytest.raises(DTypeError, match="must be uint8, got torch.int64"):
        packed(torch.tensor([[1]]), 3)
    with pytest.raises(ShapeError, match=r"\(rows, 4\), got shape \(1, 3\)"):
        unpacked(torch.zeros(1, 3, dtype=torch.int32), 3, 33)
    with pytest.raises(DTypeError, match="must be int32"):
        unpacked(torch.zeros(1, 4), 3, 33)


def test_tensors_that_do_not_fit_the_scheme():
    matrix = random_matrix(Scheme(3, 4), 2, 10)
    with pytest.raises(ShapeError, match=r"scales of a 2x10 matrix .* have shape \(2, 3\), got \(2, 2\)"):
        Quantized(matrix.codes, matrix.scales[:, :2], matrix.zeros, matrix.scheme)
    with pytest.raises(DTypeError, match="scales must be torch.float16"):
        Quantized(matrix.codes, matrix.scales.float(), matrix.zeros, matrix.scheme)
    with pytest.raises(ArgumentError, match="must be None, got a Tensor"):
        Quantized(matrix.codes, matrix.scales, matrix.zeros, Scheme(3, 4, symmetric=True))
    with pytest.raises(ArgumentError, match="must be a tensor, got a NoneType"):
        Quantized(matrix.codes, matrix.scales, None, matrix.scheme)


def test_numbers_that_no_rounding_gives():
    matrix = random_matrix(Scheme(3, 4), 2, 10)
    with pytest.raises(ArgumentError, match="proj has a code of 1.; with 3 bits it is at most 7"):
        Quantized(matrix.codes % 8 + 8, matrix.scales, matrix.zeros, matrix.scheme).require_valid("proj")
    with pytest.raises(ArgumentError, match="zero point"):
        Quantized(matrix.codes, matrix.scales, matrix.zeros + 8, matrix.scheme).require_valid()
    with pytest.raises(NonFiniteError, match="scales that are NaN"):
        Quantized(matrix.codes, matrix.scales * torch.nan, matrix.zeros, matrix.scheme).require_valid()
