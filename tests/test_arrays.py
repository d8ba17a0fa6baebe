"""Arrays of several libraries: norms without overflow, promotion of short floats, checks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpochain import MPOError, arrays

LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=8), st.sampled_from([1e-200, 1.0, 1e200]))
def test_norm_neither_overflows_nor_underflows(values, scale):
    x = np.array(values) * scale
    # Subnormal results are exact up to one step.
    step = np.finfo(np.float64).smallest_subnormal
    np.testing.assert_allclose(arrays.norm(x), np.linalg.norm(np.longdouble(x)), rtol=1e-12, atol=step)


def test_norm_of_subnormal_entries():
    step = np.finfo(np.float64).smallest_subnormal
    x = np.full(2, 9 * step)
    assert abs(arrays.norm(x) - np.linalg.norm(np.longdouble(x))) <= step


def test_non_finite_entries_are_counted_and_named():
    x = np.array([[1.0, np.nan], [np.inf, -np.inf]])
    with pytest.raises(MPOError, match=r"the weight of blocks.3 .* holds 1 NaN and 2 infinite"):
        arrays.require_finite(x, "the weight of blocks.3")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.uint8])
def test_only_floats_are_promoted(dtype):
    with pytest.raises(MPOError, match="W has elements of type"):
        arrays.promoted(torch.zeros(2, 2, dtype=dtype), "W")


@pytest.mark.parametrize(
    ("dtype", "computed_in"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_short_floats_become_float32(dtype, computed_in):
    assert arrays.promoted(torch.zeros(2, dtype=dtype), "W").dtype == computed_in


def test_mixed_libraries_are_refused():
    with pytest.raises(MPOError, match="one library"):
        arrays.namespace(np.ones(2), torch.ones(2))
    with pytest.raises(MPOError, match="one library"):
        arrays.namespace([1.0, 2.0])
