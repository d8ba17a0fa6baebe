"""Chains as values: their algebra, canonical form and truncation equal those of their dense matrices."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SEEDS, cores, matrix, specs

from mpochain import ChainSpec, MPOChain, MPOError, decompose

LIBRARIES = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


def chain_of(spec, seed):
    return MPOChain(tuple(cores(spec, seed)), spec)


def close(a, b, scale=1.0):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-10 * max(scale, 1.0))


@given(specs(), SEEDS)
def test_the_matrix_is_the_sum_over_bonds(spec, seed):
    chain = chain_of(spec, seed)
    operands = []
    n = spec.sites
    for k, core in enumerate(chain.cores):
        operands += [core, [100 + k, k, 50 + k, 101 + k]]
    # NumPy's einsum knows 52 indices; renumber them.
    used = sorted({index for labels in operands[1::2] for index in labels})
    number = {index: k for k, index in enumerate(used)}
    operands = [o if k % 2 == 0 else [number[i] for i in o] for k, o in enumerate(operands)]
    output = [number[k] for k in range(n)] + [number[50 + k] for k in range(n)]
    dense = np.einsum(*operands, output).reshape(spec.padded_shape)
    close(chain.to_matrix(), dense[: spec.out_features, : spec.in_features], np.abs(dense).max())


@given(specs(), SEEDS)
def test_canonical_form_keeps_the_matrix_and_orthonormalises(spec, seed):
    chain = chain_of(spec, seed)
    W = chain.to_matrix()
    for center in range(spec.sites):
        canonical = chain.canonicalize(center)
        close(canonical.to_matrix(), W, np.abs(W).max())
        for k, core in enumerate(canonical.cores):
            if k < center:
                side = core.reshape(-1, core.shape[3])
                close(side.T @ side, np.eye(core.shape[3]))
            if k > center:
                side = core.reshape(core.shape[0], -1)
                close(side @ side.T, np.eye(core.shape[0]))
    assert chain.norm() == pytest.approx(np.linalg.norm(W), rel=1e-9)


@given(specs(), SEEDS)
def test_truncation_is_monotone_and_states_its_error(spec, seed):
    chain = chain_of(spec, seed)
    W = chain.to_matrix()
    errors = []
    for bond in range(spec.max_bond, 0, -1):
        small = chain.truncate(bond)
        assert small.spec.max_bond <= bond
        assert small.relative_error == pytest.approx(small.relative_error_to(W), rel=1e-6, abs=1e-10)
        errors.append(small.relative_error)
    if spec.shape == spec.padded_shape:
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(errors))


@given(specs(), SEEDS, st.floats(0, 0.9))
def test_truncation_by_cutoff_stays_within_it(spec, seed, cutoff):
    chain = chain_of(spec, seed)
    small = chain.truncate(cutoff=cutoff)
    assert small.relative_error <= cutoff + 1e-12
    assert small.relative_error_to(chain.to_matrix()) <= cutoff + 1e-9


@given(specs(), SEEDS, st.floats(-5, 5))
def test_sums_multiples_and_transposes_equal_the_dense_ones(spec, seed, factor):
    a, b = chain_of(spec, seed), chain_of(spec, seed + 1)
    A, B = a.to_matrix(), b.to_matrix()
    scale = np.abs(A).max() + np.abs(B).max()
    close((a + b).to_matrix(), A + B, scale)
    close((a - b).to_matrix(), A - B, scale)
    close((a * factor).to_matrix(), A * factor, scale)
    close((factor * a).to_matrix(), A * factor, scale)
    close((-a).to_matrix(), -A, scale)
    close(a.T.to_matrix(), A.T, scale)
    total = (a + b).spec
    assert total.shape == spec.shape
    assert total == total.with_bonds(bonds=total.bonds), "the bonds of a sum are attainable"


@given(specs(), SEEDS, st.lists(st.integers(0, 3), max_size=3))
def test_product_with_vectors_equals_the_dense_one(spec, seed, lead):
    chain = chain_of(spec, seed)
    x = np.random.default_rng(seed).normal(size=(*lead, spec.in_features))
    W = chain.to_matrix()
    close(chain.apply(x), x @ W.T, np.abs(W).max() * spec.in_features)


@given(specs(), SEEDS, st.lists(st.integers(1, 3), max_size=2), st.integers(0, 3))
def test_matmul_is_that_of_the_dense_matrix(spec, seed, lead, columns):
    chain = chain_of(spec, seed)
    W, rng = chain.to_matrix(), np.random.default_rng(seed)
    scale = np.abs(W).max() * max(spec.shape)
    right = rng.normal(size=(*lead, spec.in_features, columns))
    left = rng.normal(size=(*lead, columns, spec.out_features))
    close(chain @ right, W @ right, scale)
    close(left @ chain, left @ W, scale)
    close(chain @ np.ones(spec.in_features), W @ np.ones(spec.in_features), scale)
    close(np.ones(spec.out_features) @ chain, np.ones(spec.out_features) @ W, scale)


@given(specs(max_sites=3), SEEDS, st.data())
def test_the_product_of_chains_is_the_chain_of_the_product(spec, seed, data):
    in_dims = [data.draw(st.integers(1, 3)) for _ in range(spec.sites)]
    other = ChainSpec(spec.in_dims, in_dims, 2, out_features=spec.in_features)
    a, b = chain_of(spec, seed), chain_of(other, seed + 1)
    product = a @ b
    A, B = a.to_matrix(), b.to_matrix()
    close(product.to_matrix(), A @ B, np.linalg.norm(A) * np.linalg.norm(B))
    assert product.shape == (spec.out_features, other.in_features)
    assert product.spec == product.spec.with_bonds(bonds=product.spec.bonds), "the bonds of a product are attainable"
    assert product.relative_error == 0.0


@pytest.mark.parametrize("operation", ["sum", "difference", "product", "difference of close matrices"])
def test_errors_of_sums_and_products_of_truncated_chains_are_bounded(operation):
    rng = np.random.default_rng(0)
    spec = ChainSpec((4, 4), (4, 4), 12)
    A, B = rng.normal(size=(2, 16, 16))
    if operation == "difference of close matrices":
        B = A + 1e-3 * B
    a, b = MPOChain.from_matrix(A, spec), MPOChain.from_matrix(B, spec)
    assert a.relative_error > 0
    dense = {"sum": A + B, "product": A @ B}.get(operation, A - B)
    chain = {"sum": lambda: a + b, "product": lambda: a @ b}.get(operation, lambda: a - b)()
    true = np.linalg.norm(dense - chain.to_matrix()) / np.linalg.norm(dense)
    assert 0 < true <= chain.relative_error
    assert chain.error_is_bound
    assert "relative_error<=" in repr(chain)
    if operation in ("sum", "difference"):
        assert chain.relative_error < 10 * true
    # A truncation compares with the chain that it truncates, exactly.
    assert not chain.truncate(2).error_is_bound


def test_errors_of_multiples_transposes_and_canonical_forms_stay():
    A = np.random.default_rng(0).normal(size=(16, 16))
    chain = MPOChain.from_matrix(A, ChainSpec((4, 4), (4, 4), 3))
    for result in (chain * 3.0, -chain, chain.T, chain.canonicalize(1)):
        assert (result.relative_error, result.error_is_bound) == (chain.relative_error, False)
    assert (chain + chain).T.error_is_bound


@given(specs(), SEEDS, st.integers(1, 40))
def test_bonds_over_the_attainable_are_reduced_without_loss(spec, seed, extra):
    rng = np.random.default_rng(seed)
    bonds = [1, *(bond + extra for bond in spec.bonds), 1]
    larger = [
        rng.normal(size=(bonds[k], o, i, bonds[k + 1]))
        for k, (o, i) in enumerate(zip(spec.out_dims, spec.in_dims, strict=True))
    ]
    chain = MPOChain.from_cores(larger)
    product = larger[0].reshape(-1, bonds[1])
    for k, core in enumerate(larger[1:], start=1):
        product = (product @ core.reshape(bonds[k], -1)).reshape(-1, bonds[k + 1])
    assert np.linalg.norm(product) == pytest.approx(chain.norm(), rel=1e-9)
    assert chain.spec == chain.spec.with_bonds(bonds=chain.spec.bonds)
    if spec.sites > 1:
        with pytest.raises(MPOError):
            MPOChain(tuple(np.ones((1 if k == 0 else 10**4, 1, 1, 1 if k == 1 else 10**4)) for k in range(2)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library(library):
    spec = ChainSpec((3, 4), (2, 5), max_bond=4, in_features=9)
    chain = MPOChain(tuple(LIBRARIES[library](core) for core in cores(spec, 0)), spec)
    W = np.asarray(chain.to_matrix())
    x = np.random.default_rng(1).normal(size=(2, 9))
    close(chain.apply(LIBRARIES[library](x)), x @ W.T)
    close(chain @ LIBRARIES[library](x.T), W @ x.T)
    close(LIBRARIES[library](x @ W.T) @ chain, x @ W.T @ W)
    close((chain.T @ chain).to_matrix(), W.T @ W)
    for result in (
        chain.canonicalize(1),
        chain.truncate(2),
        chain + chain,
        chain @ chain.T,
        chain.T,
        2.0 * chain,
        np.float64(2) * chain,
    ):
        assert type(result.cores[0]) is type(chain.cores[0])
    close((chain + chain).to_matrix(), 2 * W)
    assert chain.truncate(2).relative_error > 0


def test_short_floats_keep_their_type():
    chain = decompose(torch.randn(8, 8).bfloat16(), out_dims=(2, 4), in_dims=(4, 2), max_bond=3)
    for result in (chain.canonicalize(), chain.truncate(2), chain + chain, chain * 0.5, chain.T):
        assert result.dtype == torch.bfloat16
    assert math.isfinite(chain.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_truncation_of_short_floats_counts_their_rounding(dtype):
    generator = torch.Generator().manual_seed(0)
    chain = decompose(torch.randn(16, 16, generator=generator).to(dtype), out_dims=(4, 4), in_dims=(4, 4))
    for bond in (None, 6):
        smaller = chain.truncate(bond)
        assert smaller.relative_error == smaller.relative_error_to(chain.to_matrix()) > 0


def test_a_chain_is_a_frozen_value():
    chain = chain_of(ChainSpec((2, 2), (2, 2), 2), 0)
    with pytest.raises(AttributeError):
        chain.cores = ()
    assert "bonds (2)" in repr(chain)


def test_sums_stay_on_their_device_and_keep_their_type():
    spec = ChainSpec((2, 3, 2), (2, 2, 2), 3)
    meta = MPOChain(tuple(torch.empty(shape, device="meta") for shape in spec.core_shapes), spec)
    assert all(core.device.type == "meta" for core in (meta * 2.0).cores)
    short = MPOChain(tuple(core.astype(np.float32) for core in cores(spec, 0)), spec)
    assert {core.dtype for core in (short * np.float64(2)).cores} == {np.dtype(np.float32)}
    assert {core.dtype for core in (short + short).cores} == {np.dtype(np.float32)}


class TestBadInput:
    CHAIN = chain_of(ChainSpec((2, 3), (2, 2), 3), 0)

    def test_cores_of_unequal_bonds(self):
        with pytest.raises(MPOError, match="share their bond"):
            MPOChain((np.ones((1, 2, 2, 3)), np.ones((2, 2, 2, 1))))
        with pytest.raises(MPOError, match="r_left, out, in, r_right"):
            MPOChain((np.ones((2, 2)),))
        with pytest.raises(MPOError, match="r_left, out, in, r_right"):
            MPOChain(())

    def test_cores_of_several_types_or_libraries(self):
        a, b = self.CHAIN.cores
        with pytest.raises(MPOError, match="one element type, got float32, float64"):
            MPOChain((a, b.astype(np.float32)))
        with pytest.raises(MPOError, match="one library"):
            MPOChain((a, torch.tensor(b)))

    def test_bonds_over_the_attainable(self):
        with pytest.raises(MPOError, match=r"bonds \(9,\), more than the attainable \(4,\); MPOChain.from_cores"):
            MPOChain((np.ones((1, 2, 2, 9)), np.ones((9, 3, 2, 1))))

    def test_cores_of_another_spec(self):
        with pytest.raises(MPOError, match="do not fit the spec"):
            MPOChain(self.CHAIN.cores, ChainSpec((2, 3), (2, 2), 2))

    def test_input_of_the_wrong_width(self):
        with pytest.raises(MPOError, match=r"must be 4, got shape \(3, 5\)"):
            self.CHAIN.apply(np.ones((3, 5)))
        for wrong in (np.ones((5, 4)), np.ones(5), np.array(1.0)):
            with pytest.raises(MPOError, match=r"vector or matrix M of 4 rows, got shape"):
                self.CHAIN @ wrong
        for wrong in (np.ones((6, 5)), np.ones(4), np.array(1.0)):
            with pytest.raises(MPOError, match=r"vector or matrix M of 6 columns, got shape"):
                wrong @ self.CHAIN
        with pytest.raises(TypeError):
            self.CHAIN @ "text"

    def test_products_of_chains_that_do_not_fit(self):
        with pytest.raises(MPOError, match="the second needs 4 rows"):
            self.CHAIN @ self.CHAIN
        with pytest.raises(MPOError, match=r"equal inner dims, got in_dims \(2, 2\) and out_dims \(4, 1\)"):
            self.CHAIN @ chain_of(ChainSpec((4, 1), (2, 2), 2), 0)

    def test_center(self):
        for center in (-1, 2, 0.5):
            with pytest.raises(MPOError, match="a site from 0 to 1"):
                self.CHAIN.canonicalize(center)

    def test_truncation(self):
        with pytest.raises(MPOError, match="max_bond"):
            self.CHAIN.truncate(0)
        with pytest.raises(MPOError, match="cutoff"):
            self.CHAIN.truncate(cutoff=1.0)

    def test_sums_of_different_dims(self):
        other = decompose(matrix(self.CHAIN.spec, 0), out_dims=(3, 2), in_dims=(2, 2))
        with pytest.raises(MPOError, match="equal dims"):
            self.CHAIN + other
        with pytest.raises(TypeError):
            self.CHAIN + 1.0
        with pytest.raises(TypeError):
            self.CHAIN * self.CHAIN

    def test_error_to_a_matrix_of_another_shape(self):
        with pytest.raises(MPOError, match="got a matrix of shape"):
            self.CHAIN.relative_error_to(np.ones((4, 6)))

    def test_nan_cores_are_named(self):
        spoiled = MPOChain((self.CHAIN.cores[0] * np.nan, self.CHAIN.cores[1]))
        with pytest.raises(MPOError, match="core 0 .* NaN"):
            spoiled.truncate(1)
