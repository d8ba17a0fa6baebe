"""TT-SVD: decomposition of a matrix into cores by an exact singular value decomposition at every bond."""

from __future__ import annotations

from mpochain.arrays import Array
from mpochain.decomposition.sweep import Decomposition, retained_rank, sweep
from mpochain.linalg import svd
from mpochain.spec import ChainSpec

__all__ = ["split", "tt_svd"]


def split(matrix: Array, max_rank: int, tolerance: float | None) -> tuple[Array, Array, float]:
    """Split one unfolding by SVD; see :data:`mpochain.decomposition.sweep.Split`."""
    u, s, vh = svd(matrix)
    rank, discarded = retained_rank(s, max_rank, tolerance)
    return u[:, :rank], s[:rank, None] * vh[:rank, :], discarded


def tt_svd(matrix: Array, spec: ChainSpec, *, cutoff: float | None = None, name: str = "matrix") -> Decomposition:
    """Decompose a matrix by TT-SVD (Oseledets 2011).

    Optimal for two sites; for ``n`` sites the error is at most ``sqrt(n - 1)`` times that of the best chain with these
    bonds.

    Args:
        matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32 and cast
            back.
        spec: dims, and the largest bonds to use.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``; bonds are reduced as far as it
            permits.
        name: name of the matrix in errors.

    Raises:
        SpecError: the dims do not fit the matrix, or the cutoff is out of range.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(12, 12))
        >>> tt_svd(W, ChainSpec((3, 4), (4, 3))).relative_error
        0.0
    """
    return sweep(matrix, spec, split, cutoff=cutoff, name=name)
