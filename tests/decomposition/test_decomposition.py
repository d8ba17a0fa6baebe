"""Decomposition algorithms: algebraic laws, agreement with TensorLy, tolerances and errors."""

from __future__ import annotations

import math
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, matrix, specs

from mpochain import ChainSpec, MPOError, decompose, decompose_terms, shapes
from mpochain.arrays import norm
from mpochain.decomposition import (
    SPLITS,
    Algorithm,
    automatic,
    decomposed_by,
    deinterleave,
    gram,
    interleave,
    randomized,
    retained_rank,
    tt_svd,
)
from mpochain.decomposition.algorithms import fastest_algorithm
from mpochain.errors import ArgumentError, SpecError

METHODS = list(SPLITS)
LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


@given(specs(), SEEDS)
def test_interleaving_and_back_is_the_identity(spec, seed):
    W = matrix(spec, seed)
    np.testing.assert_array_equal(deinterleave(interleave(W, spec), spec), W)


@pytest.mark.parametrize("method", METHODS)
@given(spec=specs(full=True), seed=SEEDS)
def test_full_bonds_are_exact(method, spec, seed):
    W = matrix(spec, seed)
    chain = decompose(W, spec, method=method)
    assert chain.spec.bonds == spec.bonds
    assert chain.relative_error_to(W) < 1e-12
    assert chain.relative_error < 1e-12


@pytest.mark.parametrize("method", METHODS)
@given(spec=specs(padding=False), seed=SEEDS)
def test_the_squared_error_is_the_sum_of_the_discarded_squares(method, spec, seed):
    W = matrix(spec, seed)
    result = decomposed_by(method, W, spec)
    chain = decompose(W, spec, method=method)
    assert chain.spec == spec
    actual = norm(W - chain.to_matrix())
    assert math.sqrt(sum(result.discarded)) * result.norm == pytest.approx(actual, rel=1e-7, abs=1e-12 * result.norm)
    assert result.norm == pytest.approx(norm(W))
    norms = [norm(core) for core in result.cores]
    assert max(norms) == pytest.approx(min(norms)), "cores share the norm"
    assert chain.relative_error == pytest.approx(chain.relative_error_to(W), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(spec=specs(), seed=SEEDS)
def test_the_error_of_a_padded_chain_is_that_of_its_features(method, spec, seed):
    W = matrix(spec, seed)
    chain = decompose(W, spec, method=method)
    assert chain.spec == spec
    assert chain.relative_error == pytest.approx(chain.relative_error_to(W), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(spec=specs(padding=False), seed=SEEDS, cutoff=st.floats(0.0, 0.95))
def test_a_cutoff_bounds_the_error_of_the_whole_chain(method, spec, seed, cutoff):
    W = matrix(spec, seed)
    chain = decompose(W, spec.with_bonds(), cutoff=cutoff, method=method)
    assert chain.relative_error_to(W) <= cutoff + 1e-12
    both = decompose(W, spec, cutoff=cutoff, method=method)
    assert all(b <= s for b, s in zip(both.spec.bonds, spec.bonds, strict=True))


@given(spec=specs(max_sites=4, padding=False), seed=SEEDS)
def test_tensorly_gives_the_same_matrix(spec, seed):
    W = matrix(spec, seed)
    tensor = tensorly.tensor(W.reshape(*spec.out_dims, *spec.in_dims))
    if spec.sites == 1:
        return  # TensorLy has no single-site chain
    theirs = tensorly.decomposition.tensor_train_matrix(tensor, [1, *spec.bonds, 1])
    dense = tensorly.tt_matrix.tt_matrix_to_tensor(theirs).reshape(spec.shape)
    ours = decompose(W, spec)
    assert ours.relative_error == pytest.approx(norm(W - dense) / norm(W), rel=1e-6, abs=1e-10)
    # The matrices agree where the kept subspace is unique, which singular values with a gap guarantee.
    gaps = _smallest_gap(W, spec)
    if gaps > 1e-3:
        np.testing.assert_allclose(ours.to_matrix(), dense, atol=1e-7 * norm(W))


def _smallest_gap(W, spec):
    rest, left, gap = interleave(W, spec), 1, 1.0
    for k, bond in enumerate(spec.bonds):
        _u, s, vh = np.linalg.svd(rest.reshape(left * spec.out_dims[k] * spec.in_dims[k], -1), full_matrices=False)
        if bond < len(s) and s[0] > 0:
            gap = min(gap, (s[bond - 1] - s[bond]) / s[0])
        rest, left = s[:bond, None] * vh[:bond], bond
    return gap


def test_tensorly_agrees_on_larger_chains():
    W = np.random.default_rng(5).normal(size=(128, 512))
    spec = ChainSpec((4, 4, 8), (8, 8, 8), max_bond=16)
    theirs = tensorly.decomposition.tensor_train_matrix(W.reshape(4, 4, 8, 8, 8, 8), [1, 16, 16, 1])
    dense = tensorly.tt_matrix.tt_matrix_to_tensor(theirs).reshape(spec.shape)
    np.testing.assert_allclose(decompose(W, spec).to_matrix(), dense, atol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_every_library_gives_the_same_chain(library, dtype, method):
    spec = ChainSpec((6, 8, 4), (5, 4, 6), max_bond=7, out_features=190)
    W = matrix(spec, 3, dtype)
    chain = decompose(LIBRARIES[library](W), spec, method=method)
    assert type(chain.cores[0]) is type(LIBRARIES[library](W))
    assert str(chain.dtype).endswith(dtype)
    reference = decompose(matrix(spec, 3), spec, method=method)
    tolerance = 1e-5 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(np.asarray(chain.to_matrix()), reference.to_matrix(), atol=tolerance * norm(W))
    assert chain.relative_error == pytest.approx(reference.relative_error, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32_and_cast_back(dtype):
    W = torch.randn(32, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    chain = decompose(W, out_dims=(4, 8), in_dims=(6, 4), max_bond=5)
    assert chain.dtype == dtype
    exact = decompose(W.double(), out_dims=(4, 8), in_dims=(6, 4), max_bond=5)
    assert chain.relative_error == pytest.approx(exact.relative_error, rel=0.02)
    assert chain.relative_error == pytest.approx(chain.relative_error_to(W), rel=1e-6)
    full = decompose(W, out_dims=(4, 8), in_dims=(6, 4))
    assert 0 < full.relative_error == pytest.approx(full.relative_error_to(W)), "the rounding of the type is counted"


@pytest.mark.parametrize("shape", ["dims", "low rank"])
def test_the_randomised_error_is_close_to_the_best(shape):
    rng = np.random.default_rng(0)
    # A slowly decaying spectrum, the hard case.
    W = rng.normal(size=(256, 256)) @ np.diag(np.arange(1, 257.0) ** -0.3) @ rng.normal(size=(256, 256))
    spec = ChainSpec((16, 16), (16, 16), max_bond=20) if shape == "dims" else shapes.low_rank(256, 256, 20)
    exact, fast = decompose(W, spec), decompose(W, spec, method="randomized")
    assert exact.relative_error <= fast.relative_error <= 1.01 * exact.relative_error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(spec=specs(padding=False), seed=SEEDS, decay=st.sampled_from([0.0, 0.5, 2.0, 6.0]))
def test_gram_is_as_good_as_exact_singular_values(dtype, spec, seed, decay):
    W = matrix(spec, seed)
    W = (W * np.arange(1.0, W.shape[1] + 1) ** -decay).astype(dtype)
    exact, fast = decompose(W, spec, method="tt_svd"), decompose(W, spec, method="gram")
    floor = 1e-6 if dtype == "float32" else 1e-14
    if spec.sites == 2:
        assert exact.relative_error <= fast.relative_error + floor
    assert fast.relative_error <= 1.001 * exact.relative_error + floor


@pytest.mark.parametrize("tolerance", [0, 1e-3, 0.01])
@given(seed=SEEDS, decay=st.sampled_from([0.0, 0.3, 2.0]), rank=st.integers(1, 6), transposed=st.booleans())
@settings(max_examples=20)
def test_automatic_choice_stays_within_the_tolerance(tolerance, seed, decay, rank, transposed):
    rows, columns = (288, 576) if transposed else (320, 288)
    W = np.random.default_rng(seed).normal(size=(rows, columns)) * np.arange(1.0, columns + 1) ** -decay
    spec = shapes.low_rank(rows, columns, rank)
    exact, chosen = decompose(W, spec, method="tt_svd"), decompose(W, spec, tolerance=tolerance)
    assert exact.relative_error <= chosen.relative_error * (1 + 1e-12)
    assert chosen.relative_error <= (1 + tolerance) * exact.relative_error + 1e-12
    assert chosen.relative_error == pytest.approx(chosen.relative_error_to(W), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("tolerance", "rank", "cutoff", "algorithm"),
    [
        (0, 4, None, "tt_svd"),
        (1e-3, 4, None, "gram"),
        (0.01, 4, None, "randomized"),
        (0.01, 40, None, "gram"),  # the basis is not small
        (0.01, 4, 0.5, "gram"),  # a cutoff is met without randomness
    ],
)
def test_automatic_choice_names_the_algorithm_it_runs(tolerance, rank, cutoff, algorithm):
    W, spec = np.random.default_rng(0).normal(size=(400, 400)), shapes.low_rank(400, 400, rank)
    allowance = None if cutoff is None else cutoff**2
    assert fastest_algorithm(W.shape, rank, allowance, tolerance=tolerance) == algorithm
    chain = decompose(W, spec, tolerance=tolerance, cutoff=cutoff)
    named = decompose(W, spec, method=algorithm, cutoff=cutoff)
    for core, expected in zip(chain.cores, named.cores, strict=True):
        np.testing.assert_array_equal(core, expected)


def test_table_lists_every_algorithm_and_agrees_with_the_functions():
    functions = {"auto": automatic, "gram": gram, "tt_svd": tt_svd, "randomized": randomized}
    assert set(get_args(Algorithm)) == set(SPLITS) == set(functions)
    W, spec = np.random.default_rng(0).normal(size=(60, 60)), shapes.low_rank(60, 60, 3)
    for name, function in functions.items():
        for core, expected in zip(decomposed_by(name, W, spec).cores, function(W, spec).cores, strict=True):
            np.testing.assert_array_equal(core, expected)


def test_randomised_algorithm_is_determined_by_its_seed():
    W = np.random.default_rng(0).normal(size=(100, 100))
    dims = {"out_dims": (10, 10), "in_dims": (10, 10), "max_bond": 6, "method": "randomized"}
    first = decompose(W, **dims).to_matrix()
    np.testing.assert_array_equal(first, decompose(W, **dims).to_matrix())
    assert np.abs(first - decompose(W, **dims, seed=1).to_matrix()).max() > 0


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("method", METHODS)
def test_relative_error_does_not_depend_on_scale(scale, method):
    W = np.random.default_rng(0).normal(size=(20, 30))
    dims = {"out_dims": (4, 5), "in_dims": (5, 6), "method": method}
    chain, scaled = decompose(W, max_bond=6, **dims), decompose(W * scale, max_bond=6, **dims)
    assert scaled.relative_error == pytest.approx(chain.relative_error, rel=1e-9)
    assert scaled.relative_error_to(W * scale) == pytest.approx(chain.relative_error, rel=1e-9)
    assert scaled.truncate(3).relative_error == pytest.approx(chain.truncate(3).relative_error, rel=1e-9)
    assert decompose(W * scale, cutoff=0.3, **dims).spec == decompose(W, cutoff=0.3, **dims).spec


def test_no_core_overflows_a_short_type():
    W = torch.full((4096, 64), 1100.0).half()
    chain = decompose(W, out_dims=(4096, 1), in_dims=(1, 64), max_bond=1)
    assert all(bool(core.isfinite().all()) for core in chain.cores)
    assert chain.relative_error < 1e-3


def test_a_parameter_is_decomposed_without_its_history():
    weight = torch.nn.Linear(12, 12).weight
    chain = decompose(weight, out_dims=(3, 4), in_dims=(4, 3), max_bond=4)
    assert not any(core.requires_grad for core in chain.cores)
    assert chain.relative_error == pytest.approx(chain.relative_error_to(weight), rel=1e-4)


def test_a_zero_matrix_is_a_chain():
    for method in METHODS:
        chain = decompose(np.zeros((4, 6)), out_dims=(2, 2), in_dims=(3, 2), cutoff=0.1, method=method)
        assert chain.relative_error == 0.0
        assert chain.spec.bonds == (1,)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 12), st.floats(0, 50))
def test_retained_rank_is_the_smallest_that_the_tolerance_permits(values, most, tolerance):
    values = np.sort(values)[::-1]
    rank, discarded = retained_rank(values, most, tolerance)
    squares = values**2
    assert 1 <= rank <= min(most, len(values))
    assert discarded == pytest.approx(squares[rank:].sum(), abs=1e-9)
    if rank < min(most, len(values)):
        assert discarded <= tolerance * (1 + 1e-9)
    if rank > 1:
        assert squares[rank - 1 :].sum() > tolerance * (1 - 1e-9)


class TestTerms:
    SPECS = (shapes.low_rank(36, 24, 3), ChainSpec((6, 6), (6, 4), max_bond=3))

    def test_a_planted_sum_is_found(self):
        rng = np.random.default_rng(4)
        planted = sum(
            decompose(rng.normal(size=(36, 24)), spec).to_matrix() * scale
            for spec, scale in zip(self.SPECS, (10.0, 1.0), strict=True)
        )
        terms = decompose_terms(planted, self.SPECS, rounds=60)
        error = norm(planted - sum(term.to_matrix() for term in terms)) / norm(planted)
        assert error < 1e-3

    @given(SEEDS, st.integers(1, 4))
    def test_more_rounds_are_never_worse_and_two_terms_beat_either(self, seed, rounds):
        W = np.random.default_rng(seed).normal(size=(36, 24))

        def error(count):
            return norm(W - sum(term.to_matrix() for term in decompose_terms(W, self.SPECS, rounds=count)))

        assert error(rounds + 1) <= error(rounds) + 1e-9
        assert error(rounds) < min(norm(W - decompose(W, spec).to_matrix()) for spec in self.SPECS)

    def test_bad_input(self):
        with pytest.raises(MPOError, match="at least one spec"):
            decompose_terms(np.ones((4, 4)), [])
        with pytest.raises(MPOError, match="rounds"):
            decompose_terms(np.ones((4, 4)), [ChainSpec((2, 2), (2, 2))], rounds=0)


class TestBadInput:
    SPEC = ChainSpec((2, 3), (2, 2))

    def test_dims_that_do_not_multiply_to_the_shape(self):
        with pytest.raises(MPOError, match=r"the matrix is \(6, 5\) but out_dims \(2, 3\) .* multiply to \(6, 4\)"):
            decompose(np.ones((6, 5)), self.SPEC)

    def test_no_dims(self):
        with pytest.raises(MPOError, match="needs spec=, or both"):
            decompose(np.ones((6, 4)), out_dims=(2, 3))

    def test_spec_and_dims(self):
        with pytest.raises(MPOError, match="not both"):
            decompose(np.ones((6, 4)), self.SPEC, max_bond=2)

    def test_spec_of_another_type(self):
        with pytest.raises(MPOError, match="must be a ChainSpec, got tuple"):
            decompose(np.ones((6, 4)), ((2, 3), (2, 2)))

    @pytest.mark.parametrize("method", METHODS)
    def test_nan(self, method):
        W = np.ones((6, 4))
        W[1, 1] = np.nan
        with pytest.raises(MPOError, match="layer 7 .* holds 1 NaN and 0 infinite"):
            decompose(W, self.SPEC, method=method, name="layer 7")

    def test_integers(self):
        with pytest.raises(MPOError, match="matrix has elements of type int64"):
            decompose(np.ones((6, 4), dtype=np.int64), self.SPEC)

    @pytest.mark.parametrize("cutoff", [-0.1, 1.0, 2, float("nan"), "0.1", True])
    def test_cutoff(self, cutoff):
        with pytest.raises(MPOError, match=r"cutoff must be a number in \[0, 1\)"):
            decompose(np.ones((6, 4)), self.SPEC, cutoff=cutoff)

    @pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf"), "0.1", True])
    def test_tolerance(self, tolerance):
        with pytest.raises(MPOError, match="tolerance must be a number of at least 0"):
            decompose(np.ones((6, 4)), self.SPEC, tolerance=tolerance)

    def test_method(self):
        with pytest.raises(ArgumentError, match="method must be 'auto', 'gram', 'tt_svd' or 'randomized', got 'magic'"):
            decompose(np.ones((6, 4)), self.SPEC, method="magic")

    @pytest.mark.parametrize("arguments", [{"method": "magic"}, {"tolerance": -1}, {"seed": -1}, {"spec": "8x8"}])
    def test_spec_error_is_for_dims_bonds_and_cutoffs_only(self, arguments):
        with pytest.raises(ArgumentError) as raised:
            decompose(np.ones((6, 4)), **{"spec": self.SPEC, **arguments})
        assert not isinstance(raised.value, SpecError)

    @pytest.mark.parametrize("shape", [(6,), (2, 3, 4), (0, 4), ()])
    def test_array_that_is_no_matrix(self, shape):
        with pytest.raises(MPOError, match="must be a matrix"):
            decompose(np.ones(shape), self.SPEC)

    def test_lists_are_refused(self):
        with pytest.raises(MPOError, match="one library"):
            decompose([[1.0, 2.0]])

    @pytest.mark.parametrize("option", ["oversampling", "power_iterations", "seed"])
    def test_randomised_options(self, option):
        with pytest.raises(MPOError, match=option):
            randomized(np.ones((6, 4)), self.SPEC, **{option: -1})
