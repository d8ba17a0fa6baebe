"""Cores of a zero matrix from which training can start.

Cores that are all zero can never learn: the gradient of each is a product with the others. So one core is zero, and the
others are random, as in the initialisation of LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpochain.arrays import Array, asarray, cast, zeros
from mpochain.decomposition.scaling import core_std
from mpochain.spec import ChainSpec

__all__ = ["random_like", "zero_cores"]


def random_like(core: Array, std: float, seed: int = 0) -> Array:
    """Normal numbers of a standard deviation, with the shape, library and element type of ``core``.

    Drawn by NumPy, so that every library gets the same numbers.
    """
    draw = np.random.default_rng(seed).standard_normal(tuple(core.shape)) * std
    return cast(asarray(draw, core), core)


def zero_cores(cores: Sequence[Array], spec: ChainSpec) -> list[Array]:
    """Cores of the zero matrix, with the shapes of ``cores``: the last is zero, the others are random.

    The random entries have the size that a layer of these cores gets from a random initialisation.

    Args:
        cores: arrays ``(r_left, out, in, r_right)``.
        spec: spec of the chain, for the number of input features.

    Example:
        >>> first, last = zero_cores([np.zeros((1, 2, 2, 3)), np.zeros((3, 2, 2, 1))], ChainSpec((2, 2), (2, 2), 3))
        >>> bool(first.all()), bool(last.any())
        (True, False)
    """
    std = core_std([core.shape[3] for core in cores[:-1]], 1 / math.sqrt(3 * spec.in_features))
    *others, last = cores
    return [*(random_like(core, std, seed) for seed, core in enumerate(others)), zeros(tuple(last.shape), last)]
