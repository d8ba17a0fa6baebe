"""Products with packed matrices are those of the matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mpochain.execution import packed as module
from mpochain.execution.packed import PackedMatrix, packed, product


@pytest.fixture(autouse=True)
def _float32_is_packed(monkeypatch):
    monkeypatch.setattr(module, "is_faster_than_mkl", lambda: True)


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.lists(st.integers(0, 5), max_size=3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_a_product_is_that_of_the_matrix(shape, batch, bias, dtype):
    matrix, x = torch.randn(shape, dtype=dtype), torch.randn(*batch, shape[1], dtype=dtype)
    offset = torch.randn(shape[0], dtype=dtype) if bias else None
    kept = packed(matrix)
    assert (kept.shape, kept.dtype) == (matrix.shape, dtype)
    found, expected = product(x, kept, offset), F.linear(x, matrix, offset)
    accuracy = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found, expected, rtol=accuracy, atol=accuracy)


def test_what_is_packed(monkeypatch):
    matrix = torch.randn(4, 3)
    assert isinstance(packed(matrix), PackedMatrix)
    assert isinstance(packed(matrix.t()), PackedMatrix)
    for other in (torch.nn.Parameter(matrix), matrix.double(), matrix.int(), matrix[:0], matrix.to("meta"), matrix[0]):
        assert packed(other) is other
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(matrix) is matrix


def test_autocast_to_the_type_of_the_matrix():
    matrix, x, offset = torch.randn(6, 5).bfloat16(), torch.randn(3, 5), torch.randn(6)
    kept = packed(matrix)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(product(x, kept, offset), F.linear(x, matrix, offset), rtol=0.02, atol=0.02)
        torch.testing.assert_close(product(x.bfloat16(), kept), F.linear(x, matrix), rtol=0.02, atol=0.02)


def test_other_types_and_autocast_are_as_with_the_matrix():
    matrix, x, offset = torch.randn(6, 5), torch.randn(3, 5), torch.randn(6)
    kept = packed(matrix)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.linear(x, matrix, offset)
        assert product(x, kept, offset).dtype == torch.bfloat16
        torch.testing.assert_close(product(x, kept, offset), expected)
    with pytest.raises(RuntimeError):
        product(x.double(), kept)
