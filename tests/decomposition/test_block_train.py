"""Laws of block tensor trains: the best tiles of every rank, and the refit of the second factor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpochain.decomposition import refitted_tiles, tiles_of
from mpochain.errors import ArgumentError, ShapeError, SpecError
from mpochain.nn import BlockTrainLinear
from mpochain.nn.block_train import block_train_dims, block_train_parameters

DIMS = st.tuples(st.integers(1, 4), st.integers(1, 5))


def matrix(first, second):
    layer = BlockTrainLinear.from_factors(torch.from_numpy(first), torch.from_numpy(second))
    return layer.weight.detach().numpy()


def positive(generator, size):
    """A random positive definite matrix."""
    root = generator.standard_normal((size, size))
    return root @ root.T + 0.1 * np.eye(size)


@settings(deadline=None)
@given(out=DIMS, in_=DIMS, seed=st.integers(0, 99), weighted=st.booleans(), data=st.data())
def test_tiles_are_the_best_of_their_rank(out, in_, seed, weighted, data):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((out[0] * out[1], in_[0] * in_[1]))
    inputs = outputs = None
    if weighted:
        inputs, outputs = positive(generator, weight.shape[1]), positive(generator, weight.shape[0])
        for metric, (parts, part) in ((inputs, in_), (outputs, out)):  # of separate tiles
            keep = np.kron(np.eye(parts), np.ones((part, part)))
            metric *= keep
    tiles = tiles_of(weight, out, in_, inputs=inputs, outputs=outputs)
    most = min(out[1], in_[1])
    rank = data.draw(st.integers(1, most))
    first, second = tiles.factors(rank)
    error = weight - matrix(first, second)
    H = np.eye(weight.shape[1]) if inputs is None else inputs
    G = np.eye(weight.shape[0]) if outputs is None else outputs
    assert np.trace(G @ error @ H @ error.T) == pytest.approx(tiles.errors[rank], rel=1e-6, abs=1e-8)
    assert tiles.errors[0] == pytest.approx(np.trace(G @ weight @ H @ weight.T))
    assert np.all(np.diff(tiles.errors) <= 1e-12)
    assert tiles.errors[-1] == 0.0
    assert first.size + second.size == block_train_parameters(out, in_, rank)
    # Nothing nearby is better.
    for scale in (1e-2, -1e-2):
        other = weight - matrix(first + scale * generator.standard_normal(first.shape), second)
        assert np.trace(G @ other @ H @ other.T) >= tiles.errors[rank] - 1e-9


@settings(deadline=None)
@given(out=DIMS, in_=DIMS, seed=st.integers(0, 99), data=st.data())
def test_a_refit_is_the_best_second_factor(out, in_, seed, data):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((out[0] * out[1], in_[0] * in_[1]))
    inputs = positive(generator, weight.shape[1])
    rank = data.draw(st.integers(1, min(out[1], in_[1])))
    first, second = tiles_of(weight, out, in_, inputs=inputs).factors(rank)
    refitted = refitted_tiles(weight, first, second, inputs)

    def lost(factor):
        error = weight - matrix(first, factor)
        return np.trace(error @ inputs @ error.T)

    assert lost(refitted) <= lost(second) * (1 + 1e-9) + 1e-9
    for scale in (1e-2, -1e-2):
        assert lost(refitted + scale * generator.standard_normal(second.shape)) >= lost(refitted) * (1 - 1e-6) - 1e-9


def test_a_product_of_kronecker_form_is_monarch():
    """A Kronecker product has tiles of rank one only if its second factor has; a sum of tiles of one rank has."""
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((3, 2, 4)), generator.standard_normal((2, 5, 3))
    tiles = tiles_of(matrix(first, second), (2, 5), (3, 4))
    assert tiles.errors[1] == pytest.approx(0.0, abs=1e-20 + 1e-12 * tiles.errors[0])


def test_parameters_grow_by_the_power_of_one_and_a_half():
    for size in (16, 64, 256, 1024):
        dims = block_train_dims(size)
        assert block_train_parameters(dims, dims, 3) == round(2 * 3 * size**1.5)
        assert BlockTrainLinear(size, size, 3, bias=False).macs() == round(6 * size**1.5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((12, 8, 0), {}, ArgumentError, "bond must be a positive integer, got 0"),
        ((12, 8, 5), {}, SpecError, "bond 5 exceeds the smaller side of the 4x4 tiles"),
        ((12, 8, 1), {"in_dims": (5, 2)}, SpecError, r"in_dims \(5, 2\) multiply to 10, and in_features is 12"),
        ((12, 8, 1), {"out_dims": (2, 2, 2)}, SpecError, "out_dims must be two positive integers"),
    ],
)
def test_sizes_that_fit_no_block_train(arguments, options, error, words):
    with pytest.raises(error, match=words):
        BlockTrainLinear(*arguments, **options)


def test_factors_that_do_not_fit_together():
    with pytest.raises(SpecError, match="are no block tensor train"):
        BlockTrainLinear.from_factors(torch.zeros(3, 4, 4), torch.zeros(2, 5, 5))
    with pytest.raises(ShapeError, match="do not multiply to the shape"):
        tiles_of(np.zeros((4, 4)), (2, 3), (2, 2))
