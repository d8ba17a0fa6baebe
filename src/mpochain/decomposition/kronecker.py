"""Best sum of Kronecker products for a given order of rows and columns (Van Loan, Pitsianis 1993).

``W = sum_r A_r (x) B_r`` with ``A_r (m_1, n_1)`` and ``B_r (m_2, n_2)`` is the chain ``(m_1, m_2) | (n_1, n_2)`` whose
bond is the number of terms. Its blocks ``(m_2, n_2)`` are linear combinations of the ``B_r``, so the best sum is a
truncated SVD of the matrix whose rows are the blocks, as in :func:`mpochain.decomposition.tt_svd`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import in_range, norm
from mpochain.decomposition.scaling import equalised
from mpochain.decomposition.zero import random_like
from mpochain.linalg import eigh, inverse, solve, svd
from mpochain.spec import ChainSpec

__all__ = ["KroneckerBlocks"]

_Floats = NDArray[np.float64]
_Order = NDArray[np.int64]

# Least share of the squared norm that counts as noise when entries of a block are predicted from the others.
_LEAST_NOISE = 1e-9

# A singular value below this share of the largest is rounding error.
_ZERO = 1e-13


class KroneckerBlocks:
    """A matrix under any order of its rows and columns, with the best sum of Kronecker products for each order.

    Args:
        matrix: float64 array of shape ``spec.shape``.
        spec: two sites ``(m_1, m_2) | (n_1, n_2)`` without padding; its bond is the number of terms.

    Example:
        >>> from mpochain.spec import ChainSpec
        >>> A, B = np.arange(6.0).reshape(2, 3), np.array([[1.0, -1.0]])
        >>> form = KroneckerBlocks(np.kron(A, B), ChainSpec((2, 1), (3, 2), 1))
        >>> blocks = form.blocks(np.arange(2), np.arange(6))
        >>> form.error(blocks, form.span(blocks)) < 1e-15
        True
    """

    def __init__(self, matrix: _Floats, spec: ChainSpec) -> None:
        ranged, self._exponent = in_range(matrix)
        # Scaled to unit norm, so that no square overflows or underflows.
        self._norm = norm(ranged)
        self.matrix = ranged / self._norm if self._norm else ranged
        (self.m1, self.m2), (self.n1, self.n2) = spec.out_dims, spec.in_dims
        self.terms, self._spec = spec.max_bond, spec

    @property
    def is_zero(self) -> bool:
        """Whether the matrix is zero."""
        return not self._norm

    def blocks(self, rows: _Order, columns: _Order) -> _Floats:
        """The blocks ``(m_1, n_1, m_2, n_2)`` of the matrix in the given order of rows and columns."""
        ordered = self.matrix.take(rows, axis=0).take(columns, axis=1)
        split = ordered.reshape(self.m1, self.m2, self.n1, self.n2)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3))

    def span(self, blocks: _Floats) -> _Floats:
        """Orthonormal ``B_r (m_2 n_2, R)`` of the best sum."""
        flat = blocks.reshape(self.m1 * self.n1, self.m2 * self.n2)
        if flat.shape[0] >= flat.shape[1]:
            return eigh(flat.T @ flat)[1][:, ::-1][:, : self.terms]
        return svd(flat)[2][: self.terms].T

    def error(self, blocks: _Floats, span: _Floats) -> float:
        """Relative error of the sum with these ``B_r``."""
        flat = blocks.reshape(-1, len(span))
        # From the residual itself: if it is small, a difference of squares is mostly rounding error.
        return float(np.linalg.norm(flat - (flat @ span) @ span.T))

    def sum(self, blocks: _Floats, span: _Floats) -> _Floats:
        """The sum as a matrix."""
        flat = blocks.reshape(-1, len(span))
        return self.joined(((flat @ span) @ span.T).reshape(blocks.shape))

    def joined(self, blocks: _Floats) -> _Floats:
        """The matrix of blocks, in the same order; the inverse of :meth:`blocks`."""
        return blocks.transpose(0, 2, 1, 3).reshape(self.m1 * self.m2, self.n1 * self.n2)

    def factors(self, rows: _Order, columns: _Order) -> tuple[_Floats, _Floats]:
        """Both cores of the best sum for the given order, with equal norms.

        A term beyond the rank of the blocks has a zero ``A_r`` and a random ``B_r``, so that training can use it.
        """
        blocks = self.blocks(rows, columns)
        left, values, right = svd(blocks.reshape(self.m1 * self.n1, -1))
        left, values, right = left[:, : self.terms], values[: self.terms], right[: self.terms]
        unused = values <= _ZERO * (values[0] or 1.0)
        roots = np.sqrt(np.where(unused, values[0] or 1.0, values))
        A = (left * np.where(unused, 0.0, roots)).reshape(1, self.m1, self.n1, self.terms)
        B = (roots[:, None] * np.where(unused[:, None], _random_directions(right), right)).reshape(
            self.terms, self.m2, self.n2, 1
        )
        A, B = equalised([A, B], self._norm or 1.0, self._exponent)
        return A, B

    def moments(self, blocks: _Floats) -> _Floats:
        """Second moments ``(m_2 n_2, m_2 n_2)`` of the blocks, modelled as those of the sum plus white noise."""
        span = self.span(blocks)
        flat = blocks.reshape(-1, len(span))
        seen = flat.T @ flat
        kept = span @ (span.T @ seen @ span) @ span.T
        noise = max(np.trace(seen - kept) / len(span), _LEAST_NOISE * np.trace(seen))
        return kept + noise * np.eye(len(span))

    def predicted_from_others(self, blocks: _Floats, moments: _Floats, slots: list[int]) -> tuple[_Floats, _Floats]:
        """Predict the columns ``slots`` of every block from its other columns, and give the prediction's precision.

        Blocks are assumed to be normally distributed with these second moments.

        Returns:
            The prediction ``(m_1, n_1, m_2 slots)``, and the inverse covariance of its error, up to a factor.
        """
        entries = np.arange(self.m2 * self.n2).reshape(self.m2, self.n2)
        own, others = entries[:, slots].ravel(), np.delete(entries, slots, axis=1).ravel()
        regression = solve(moments[np.ix_(others, others)], moments[np.ix_(others, own)])
        covariance = moments[np.ix_(own, own)] - moments[np.ix_(own, others)] @ regression
        flat = blocks.reshape(self.m1, self.n1, -1)
        return flat[..., others] @ regression, inverse((covariance + covariance.T) / 2)

    def transposed(self) -> KroneckerBlocks:
        """The same problem for the transposed matrix, with rows and columns exchanged."""
        return KroneckerBlocks(self.matrix.T, self._spec.transposed())


def _random_directions(like: _Floats) -> _Floats:
    """Random rows of norm 1."""
    rows: _Floats = random_like(like, 1.0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
