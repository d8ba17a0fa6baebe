"""Decomposition of a matrix into cores by eigenvectors of Gram matrices, instead of full SVDs.

The left singular vectors of ``A`` are the eigenvectors of ``A A^T``, the right singular vectors those of ``A^T A``. The
smaller of the two matrices is used, and takes one fast matrix product. Squaring loses directions whose singular values
are below ``sqrt(eps)`` times the largest. If so little is discarded that these directions matter, an SVD is used
instead.
"""

from __future__ import annotations

from mpochain.arrays import Array, dtype_name, namespace, norm
from mpochain.decomposition.sweep import Decomposition, retained_rank, sweep
from mpochain.decomposition.tt_svd import split as exact_split
from mpochain.linalg import eigh, qr
from mpochain.spec import ChainSpec

__all__ = ["gram", "split"]

# A discarded share of the squared norm below this is too close to the rounding error of the squares to be trusted.
_LEAST_DISCARDED = {"float32": 1e-6, "float64": 1e-14}


def split(matrix: Array, max_rank: int, tolerance: float | None) -> tuple[Array, Array, float]:
    """Split one unfolding by a Gram matrix; see :data:`mpochain.decomposition.sweep.Split`."""
    xp = namespace(matrix)
    rows, columns = matrix.shape
    if tolerance is None and max_rank >= min(rows, columns):
        return exact_split(matrix, max_rank, tolerance)
    transposed = xp.matrix_transpose(matrix)
    values, vectors = eigh(matrix @ transposed if rows <= columns else transposed @ matrix)
    values = xp.flip(xp.where(values > 0, values, xp.zeros_like(values)), axis=0)
    rank, _ = retained_rank(xp.sqrt(values), max_rank, tolerance)
    leading = xp.flip(vectors, axis=1)[:, :rank]
    # For a tall matrix these are right singular vectors; their images span the left ones.
    basis = leading if rows <= columns else qr(matrix @ leading)[0]
    rest = xp.matrix_transpose(basis) @ matrix
    discarded = norm(matrix - basis @ rest) ** 2
    exceeded = tolerance is not None and rank < max_rank and discarded > tolerance
    if exceeded or discarded < _LEAST_DISCARDED[dtype_name(matrix)]:
        return exact_split(matrix, max_rank, tolerance)
    return basis, rest, discarded


def gram(matrix: Array, spec: ChainSpec, *, cutoff: float | None = None, name: str = "matrix") -> Decomposition:
    """Decompose a matrix as :func:`~mpochain.decomposition.tt_svd` does, several times faster.

    The error exceeds that of TT-SVD by at most 0.1 %. Splits that discard almost nothing use an exact SVD.

    Args:
        matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32.
        spec: dims, and the largest bonds to use.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``.
        name: name of the matrix in errors.

    Raises:
        SpecError: the dims do not fit the matrix, or the cutoff is out of range.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(48, 48))
        >>> round(gram(W, ChainSpec((6, 8), (6, 8), max_bond=9)).relative_error, 3)
        0.695
    """
    return sweep(matrix, spec, split, cutoff=cutoff, name=name)
