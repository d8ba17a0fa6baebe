"""Pivot rows that suit several matrices of low rank at once, so that one order of rows serves all of them.

As in QR with pivoting, the next row is one that is far from the span of those chosen before; here in every matrix, by
the product of its squared distances. Rows are chosen in blocks: the best of a few candidates in turn, then all matrices
are updated by one product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import Array, cast, detached, require_matrix, to_numpy
from mpochain.errors import ShapeError
from mpochain.linalg import qr

__all__ = ["joint_pivots"]

# Rows chosen between two updates of the matrices, and candidates for them.
_BLOCK, _CANDIDATES = 16, 64


def joint_pivots(factors: Sequence[Array]) -> list[int]:
    """An order of rows of which the first ``r`` span each matrix of rank ``r``, well conditioned.

    Args:
        factors: left factors ``(out, r)`` of the matrices, with independent columns; ranks may differ.

    Returns:
        A permutation of ``range(out)``. Of a matrix of rank ``r`` the first ``r`` rows in this order are those to
        store; see :func:`mpochain.decomposition.interpolative`.

    Raises:
        ShapeError: no factor, factors with other numbers of rows, or more columns than rows.

    Example:
        >>> one, other = np.random.default_rng(0).normal(size=(2, 40, 10))
        >>> first = joint_pivots([one, other])[:10]
        >>> bool(max(np.linalg.cond(one[first]), np.linalg.cond(other[first])) < 100)
        True
    """
    for factor in factors:
        require_matrix(factor, "factor")
    if len({factor.shape[0] for factor in factors}) != 1 or any(f.shape[1] > f.shape[0] for f in factors):
        shapes = ", ".join(str(tuple(factor.shape)) for factor in factors)
        raise ShapeError(f"joint_pivots needs factors (out, r) with one out and r at most out, got {shapes or 'none'}")
    # Rows of an orthonormal basis, so that no column counts more than another.
    rests = [qr(to_numpy(cast(detached(factor), "float64")))[0] for factor in factors]
    ranks = [rest.shape[1] for rest in rests]
    order: list[int] = []
    free = np.ones(len(rests[0]), dtype=bool)
    while len(order) < max(ranks):
        active = [rest for rest, rank in zip(rests, ranks, strict=True) if rank > len(order)]
        # No further than to the next rank, where a matrix stops to count.
        room = min(rank for rank in ranks if rank > len(order)) - len(order)
        chosen = _block(active, free, min(_BLOCK, room))
        free[chosen] = False
        order += chosen
        for rest in active:
            basis = qr(rest[chosen].T)[0]
            rest -= (rest @ basis) @ basis.T
    return order + np.flatnonzero(free).tolist()


def _block(rests: Sequence[NDArray[np.float64]], free: NDArray[np.bool_], count: int) -> list[int]:
    """The next rows, from those that are farthest from the span so far."""
    score = _score(rests)
    candidates = np.flatnonzero(free)
    candidates = candidates[np.argsort(-score[candidates], kind="stable")[: max(_CANDIDATES, count)]]
    local = [rest[candidates] for rest in rests]
    chosen: list[int] = []
    for _ in range(count):
        score = _score(local)
        score[chosen] = -np.inf
        best = int(score.argmax())
        chosen.append(best)
        for rest in local:
            unit = rest[best] / max(np.linalg.norm(rest[best]), np.finfo(np.float64).tiny)
            rest -= np.outer(rest @ unit, unit)
    return candidates[chosen].tolist()


def _score(rests: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Logarithm of the product of a row's squared distances from the span, over all matrices."""
    squares = [np.einsum("ij,ij->i", rest, rest) for rest in rests]
    return np.sum(np.log(np.asarray(squares) + np.finfo(np.float64).tiny), axis=0)
