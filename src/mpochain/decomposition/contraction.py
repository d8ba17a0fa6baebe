"""Contraction of a chain to its dense matrix or with input vectors, and sums and products of two chains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpochain.arrays import Array, asarray, cast, namespace, zeros
from mpochain.decomposition.interleave import deinterleave
from mpochain.decomposition.rounding import left_unfolding, right_unfolding
from mpochain.spec import ChainSpec

__all__ = ["contracted", "direct_product", "direct_sum", "swept"]


def contracted(cores: Sequence[Array], spec: ChainSpec) -> Array:
    """Contract cores ``(r_left, out, in, r_right)`` to the dense matrix ``(out_features, in_features)``.

    Example:
        >>> import numpy as np
        >>> contracted([np.ones((1, 2, 1, 3)), np.ones((3, 1, 2, 1))], ChainSpec((2, 1), (1, 2), 3)).tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    xp = namespace(*cores)
    tensor = left_unfolding(cores[0])
    for core in cores[1:]:
        tensor = xp.reshape(tensor @ right_unfolding(core), (-1, core.shape[3]))
    return deinterleave(tensor, spec)


def swept(cores: Sequence[Array], spec: ChainSpec, x: Array) -> Array:
    """``x @ W^T`` for ``x (..., in_features)``, contracted site by site from the last to the first.

    Example:
        >>> import numpy as np
        >>> cores = [np.ones((1, 2, 1, 3)), np.ones((3, 1, 2, 1))]
        >>> swept(cores, ChainSpec((2, 1), (1, 2), 3), np.array([1.0, 2.0])).tolist()
        [9.0, 9.0]
    """
    xp = namespace(x, *cores)
    lead = tuple(x.shape[:-1])
    rows = math.prod(lead)
    missing = spec.padded_shape[1] - spec.in_features
    if missing:
        x = xp.concat([x, xp.broadcast_to(xp.zeros_like(x[..., :1]), (*lead, missing))], axis=-1)
    waiting, done = spec.padded_shape[1], 1
    state = x
    for core in reversed(cores):
        left, out, in_, right = core.shape
        waiting //= in_
        # (rows i_1..i_{k-1}, i_k r_k, o_{k+1}..o_n): the product has the layout that the next site needs.
        state = xp.reshape(state, (rows * waiting, in_ * right, done))
        state = xp.reshape(core, (left * out, in_ * right)) @ state
        done *= out
    return xp.reshape(state, (*lead, done))[..., : spec.out_features]


def direct_sum(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    """Cores of the sum of two matrices with the same dims: block-diagonal cores, whose bonds add up.

    Example:
        >>> import numpy as np
        >>> cores = [np.ones((1, 2, 1, 3)), np.ones((3, 1, 2, 1))]
        >>> [core.shape for core in direct_sum(cores, cores)]
        [(1, 2, 1, 6), (6, 1, 2, 1)]
    """
    if len(a) == 1:
        return [a[0] + b[0]]
    xp = namespace(*a, *b)
    cores = [xp.concat([a[0], b[0]], axis=3)]
    for x, y in zip(a[1:-1], b[1:-1], strict=True):
        upper = xp.concat([x, zeros((x.shape[0], *y.shape[1:]), x)], axis=3)
        lower = xp.concat([zeros((y.shape[0], *x.shape[1:]), y), y], axis=3)
        cores.append(xp.concat([upper, lower], axis=0))
    cores.append(xp.concat([a[-1], b[-1]], axis=0))
    return cores


def direct_product(a: Sequence[Array], b: Sequence[Array], features: int) -> list[Array]:
    """Cores of the product of two matrices whose inner dims are equal; bonds multiply.

    Args:
        a: cores of the first matrix, ``(r_left, out, inner, r_right)``.
        b: cores of the second matrix, ``(r_left, inner, in, r_right)``.
        features: number of inner features; padding beyond them does not count.

    Example:
        >>> import numpy as np
        >>> cores = [np.ones((1, 2, 2, 3)), np.ones((3, 2, 2, 1))]
        >>> [core.shape for core in direct_product(cores, cores, 4)]
        [(1, 2, 2, 9), (9, 2, 2, 1)]
    """
    dims = [core.shape[1] for core in b]
    if features < math.prod(dims):
        b = [_product(mask, core) for mask, core in zip(_first_features(dims, features, b[0]), b, strict=True)]
    return [_product(x, y) for x, y in zip(a, b, strict=True)]


def _product(x: Array, y: Array) -> Array:
    """Core ``(r s, o, i, t u)`` of ``sum_m x[r, o, m, t] y[s, m, i, u]``."""
    xp = namespace(x, y)
    (r, o, m, t), (s, _, i, u) = x.shape, y.shape
    left = xp.reshape(xp.permute_dims(x, (0, 1, 3, 2)), (r * o * t, m))
    right = xp.reshape(xp.permute_dims(y, (1, 0, 2, 3)), (m, s * i * u))
    core = xp.reshape(left @ right, (r, o, t, s, i, u))
    return xp.reshape(xp.permute_dims(core, (0, 3, 1, 4, 2, 5)), (r * s, o, i, t * u))


def _first_features(dims: Sequence[int], features: int, like: Array) -> list[Array]:
    """Cores of the diagonal matrix that keeps the first features and drops the padding.

    The two states of a bond say whether the digits so far equal those of the last feature, or are below them.
    """
    last = np.unravel_index(features - 1, tuple(dims))
    cores = []
    for dim, digit in zip(dims, last, strict=True):
        core = np.zeros((2, dim, dim, 2))
        core[0, digit, digit, 0] = 1.0
        for smaller in range(digit):
            core[0, smaller, smaller, 1] = 1.0
        core[1, :, :, 1] = np.eye(dim)
        cores.append(core)
    cores[0] = cores[0][:1]
    cores[-1] = cores[-1].sum(axis=3, keepdims=True)
    return [cast(asarray(core, like), like) for core in cores]
