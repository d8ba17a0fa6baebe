"""Interpolative decomposition of a low-rank matrix: ``r`` of its rows, and coefficients for the other rows.

``W = L R`` of rank ``r`` equals ``(L M^-1)(M R)`` for every invertible ``M (r, r)``. If ``M`` consists of the rows of
``L`` that QR with column pivoting selects, ``r`` rows of the left factor become the identity, which is not stored. The
same matrix then takes ``r (out + in - r)`` parameters and multiply-adds instead of ``r (out + in)``. The gain in rank
for a fixed number of parameters is largest at high rank: half the parameters of a square matrix allow a rank of 0.29 of
its side instead of 0.25, nine tenths allow 0.68 instead of 0.45.

Source: the interpolative decomposition (Cheng, Gimbutas, Martinsson, Rokhlin, SIAM J. Sci. Comput. 26, 2005); as layers
of a network, arXiv 2501.19090.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpochain.arrays import (
    Array,
    asarray,
    cast,
    detached,
    namespace,
    promoted,
    require_finite,
    require_matrix,
    to_numpy,
)
from mpochain.errors import ShapeError
from mpochain.linalg import pivoted_qr, solve_triangular

__all__ = ["Interpolation", "interpolative", "interpolative_parameters", "interpolative_rank"]


@dataclass(frozen=True, eq=False)
class Interpolation:
    """A matrix ``(out, in)`` of rank ``r`` as ``r`` of its rows and the coefficients of the others.

    Attributes:
        rows: ``(r, in)``, the selected rows of the matrix.
        coefficients: ``(out - r, r)``; the other rows are ``coefficients @ rows``.
        permutation: a permutation of ``range(out)``; row ``k`` of the matrix is row ``permutation[k]`` of
            ``[rows; coefficients @ rows]``.
    """

    rows: Array
    coefficients: Array
    permutation: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of selected rows."""
        return int(self.rows.shape[0])

    @property
    def parameters(self) -> int:
        """Number of elements in both arrays."""
        return interpolative_parameters(len(self.permutation), int(self.rows.shape[1]), self.rank)

    def to_matrix(self) -> Array:
        """The matrix ``(out, in)``."""
        xp = namespace(self.rows, self.coefficients)
        permutation = asarray(np.asarray(self.permutation), self.rows)
        return xp.take(xp.concat([self.rows, self.coefficients @ self.rows], axis=0), permutation, axis=0)


def interpolative_parameters(out_features: int, in_features: int, rank: int) -> int:
    """Number of elements of an interpolation: ``rank (out + in - rank)``.

    Example:
        >>> interpolative_parameters(576, 576, 168), 168 * (576 + 576)
        (165312, 193536)
    """
    return rank * (out_features + in_features - rank)


def interpolative_rank(out_features: int, in_features: int, parameters: int) -> int:
    """The largest rank whose interpolation has at most ``parameters`` elements; 0 if even rank 1 has more.

    Example:
        >>> interpolative_rank(576, 576, 576 * 576 // 2)
        168
    """
    low, high = 0, min(out_features, in_features)
    while low < high:
        middle = (low + high + 1) // 2
        fits = interpolative_parameters(out_features, in_features, middle) <= parameters
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def interpolative(left: Array, right: Array) -> Interpolation:
    """Interpolative decomposition of the product of two factors, exact up to rounding; computed in float64.

    Args:
        left: left factor ``(out, r)``.
        right: right factor ``(r, in)``, of the same array library.

    Returns:
        An interpolation of rank ``r``, or of lower rank if ``left`` has fewer independent rows.

    Raises:
        ShapeError: two arrays that are not matrices or cannot be multiplied, or ``r`` above ``out``.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> L, R = np.random.default_rng(0).normal(size=(2, 8, 3))
        >>> short = interpolative(L, R.T)
        >>> short.rank, short.parameters, np.allclose(short.to_matrix(), L @ R.T)
        (3, 39, True)
    """
    for name, factor in (("left", left), ("right", right)):
        require_matrix(factor, name)
    if left.shape[1] != right.shape[0] or left.shape[1] > left.shape[0]:
        raise ShapeError(
            f"expected left (out, r) and right (r, in) with r at most out, got {tuple(left.shape)} and "
            f"{tuple(right.shape)}"
        )
    left64, right64 = (
        cast(promoted(detached(factor), name), "float64") for name, factor in (("left", left), ("right", right))
    )
    require_finite(left64, "left")
    require_finite(right64, "right")
    triangle, order = pivoted_qr(to_numpy(left64).T)
    sizes = np.abs(np.diagonal(triangle))
    rank = max(int(np.count_nonzero(sizes > sizes[0] * np.finfo(np.float64).eps * len(order))), 1)
    if sizes[0] > 0:
        coefficients = solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:]).T
    else:
        coefficients = np.zeros((len(order) - rank, rank))
    pivots = asarray(order[:rank].astype(np.int64), left64)
    return Interpolation(
        cast(namespace(left64, right64).take(left64, pivots, axis=0) @ right64, left),
        cast(asarray(np.ascontiguousarray(coefficients), left64), left),
        tuple(map(int, np.argsort(order))),
    )
