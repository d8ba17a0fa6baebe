"""Distribution of scale over cores: the matrix stays the same, norms become equal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS, cores, specs

from mpochain.arrays import norm
from mpochain.decomposition import contracted, equalised, equalised_rows, scaled_to_first


@given(specs(), SEEDS, st.sampled_from([1e-100, 0.5, 1.0, 1e100]))
def test_equalised_cores_have_equal_norms_and_the_scaled_matrix(spec, seed, scale):
    original = cores(spec, seed)
    equal = equalised(original, scale)
    np.testing.assert_allclose([norm(core) for core in equal], norm(equal[0]), rtol=1e-9)
    np.testing.assert_allclose(contracted(equal, spec) / scale, contracted(original, spec), rtol=1e-9, atol=1e-9)


def test_a_zero_core_leaves_the_others_unchanged():
    first, zero = np.ones((1, 2, 2, 3)), np.zeros((3, 2, 2, 1))
    for core, expected in zip(equalised([first, zero]), [first, zero], strict=True):
        np.testing.assert_array_equal(core, expected)
    assert not any(core.any() for core in equalised([first, first], 0.0))


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_rows_are_equalised_like_single_chains(library):
    random = np.random.default_rng(0)
    arrays = [random.normal(size=(5, size)) for size in (2, 6, 3)]
    arrays[1][3] = 0.0
    rows = equalised_rows([library(array) for array in arrays])
    for k in range(5):
        single = equalised([array[k] for array in arrays]) if k != 3 else [np.zeros(array.shape[1]) for array in arrays]
        for row, expected in zip(rows, single, strict=True):
            np.testing.assert_allclose(np.asarray(row[k]), expected, rtol=1e-12)


@given(specs(min_sites=2), SEEDS)
def test_the_first_core_carries_the_scale(spec, seed):
    original = cores(spec, seed)
    scaled = scaled_to_first(original)
    for core in scaled[1:]:
        assert math.isclose(float(np.mean(core**2)), 1.0)
    np.testing.assert_allclose(contracted(scaled, spec), contracted(original, spec), rtol=1e-9, atol=1e-9)
