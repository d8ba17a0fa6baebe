"""Low-rank approximations of a matrix at all ranks, with a fixed metric on its smaller side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import Array, namespace, to_numpy
from mpochain.linalg import eigh

__all__ = ["Projector", "WeightedLowRank"]


@dataclass(frozen=True, eq=False)
class WeightedLowRank:
    """Best weighted approximations of a matrix, for all ranks at once.

    Attributes:
        left: ``(out, k)``; the best matrix of rank ``r`` is ``left[:, :r] @ right[:r]``.
        right: ``(k, in)``.
        squares: ``(k,)``, reduction of the squared weighted error by each further rank, descending.
        relative_errors: ``(k + 1,)``, relative error of each rank from 0 to ``k`` in the weighted norm; 0 for a zero
            matrix.
        basis: ``(s, k)`` and ``(k, s)``, with ``s`` the smaller side of ``W``; the product of their leading parts
            projects ``W`` to the best matrix of a rank, see :meth:`projection`.
    """

    left: Array
    right: Array
    squares: NDArray[np.float64]
    relative_errors: NDArray[np.float64]
    basis: tuple[Array, Array]

    @property
    def errors(self) -> NDArray[np.float64]:
        """``(k + 1,)``, the squared weighted error of each rank from 0 to ``k``; the last is 0."""
        return _lost(self.squares)

    def relative_error(self, rank: int) -> float:
        """Relative error, in the weighted norm, of the best matrix of rank ``rank``."""
        return float(self.relative_errors[min(rank, len(self.relative_errors) - 1)])

    def projection(self, rank: int) -> Array:
        """Projection ``B (s, s)`` of rank ``r``; the best matrix is ``B W`` if ``out <= in``, otherwise ``W B^T``."""
        left, right = self.basis
        return left[:, :rank] @ right[:rank]

    def factors(self, rank: int) -> tuple[Array, Array]:
        """Factors ``(out, r)`` and ``(r, in)`` of the best matrix of rank ``r``, in float64."""
        return self.left[:, :rank], self.right[:rank]


class Projector:
    """Low-rank approximation with a fixed metric ``M`` on the smaller side, for any moments ``N``.

    With ``U`` the leading eigenvectors of ``M^1/2 N M^1/2`` the projection is ``B = M^-1/2 U U^T M^1/2``, and the
    approximation is ``B W`` if ``out <= in``, otherwise ``W B^T``.

    Args:
        metric: ``M``, see :func:`projected_low_rank`; its roots are computed once.
    """

    def __init__(self, metric: Array | None) -> None:
        self._root: Array | None = None
        self._inverse: Array | None = None
        if metric is not None:
            self._root, self._inverse = _roots(*eigh(metric))

    @classmethod
    def shifted(cls, metric: Array, shifts: Sequence[float]) -> Iterator[Projector]:
        """Projectors with the metrics ``M + s I`` of several shifts, from one eigenvalue decomposition.

        Args:
            metric: ``M``.
            shifts: numbers of at least 0 that are added to the diagonal.
        """
        values, vectors = eigh(metric)
        for shift in shifts:
            projector = cls(None)
            # What rounding makes of zero is below zero as often as above.
            projector._root, projector._inverse = _roots(values.clip(0.0) + shift, vectors)
            yield projector

    def __call__(self, weight64: Array, moments: Array, exponent: int = 0) -> WeightedLowRank:
        """Approximations of all ranks of a float64 matrix with the moments ``N``.

        Args:
            weight64: the matrix.
            moments: ``N``, up to a factor.
            exponent: power of two that multiplies the squared errors.
        """
        xp = namespace(weight64)
        root, inverse = self._root, self._inverse
        squares, U = _eigenvectors(moments if root is None else root @ moments @ root)
        left = U if inverse is None else inverse @ U
        right = xp.matrix_transpose(U if root is None else root @ U)
        lost = _lost(squares)
        relative = np.sqrt(lost / (lost[0] or 1.0))
        with np.errstate(over="ignore", under="ignore"):
            squares = np.ldexp(squares, exponent)
        if weight64.shape[0] <= weight64.shape[1]:
            return WeightedLowRank(left, right @ weight64, squares, relative, (left, right))
        factors = weight64 @ xp.matrix_transpose(right), xp.matrix_transpose(left)
        return WeightedLowRank(*factors, squares, relative, (left, right))


def _lost(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(k + 1,)``, sum of the squares from each position on; the last is 0."""
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


def _eigenvectors(symmetric: Array) -> tuple[NDArray[np.float64], Array]:
    """Eigenvalues in descending order, with negative ones set to 0, and eigenvectors as columns."""
    xp = namespace(symmetric)
    values, vectors = eigh((symmetric + xp.matrix_transpose(symmetric)) / 2)
    descending = to_numpy(xp.flip(values, axis=0))
    return np.maximum(descending, 0.0), xp.flip(vectors, axis=1)


def _roots(values: Array, vectors: Array) -> tuple[Array, Array]:
    """Square root of a positive semidefinite matrix, and the pseudo-inverse of that root, from its eigenvalues."""
    xp = namespace(values)
    values = xp.where(values > 0, values, xp.zeros_like(values))
    sizes = xp.sqrt(values)
    nonzero = values > float(xp.max(values)) * 1e-14
    inverses = xp.where(nonzero, 1 / xp.where(nonzero, sizes, xp.ones_like(sizes)), xp.zeros_like(sizes))
    transposed = xp.matrix_transpose(vectors)
    return (vectors * sizes) @ transposed, (vectors * inverses) @ transposed
