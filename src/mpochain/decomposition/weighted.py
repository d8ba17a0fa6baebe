"""Weighted low-rank approximation of a matrix in closed form, for second moments of the inputs and output weights.

Minimises ``E[(y - y')^T G (y - y')]`` over the matrices of rank ``r``, where ``y = W x``, ``y' = W' x`` and
``H = E[x x^T]``. This is the weighted norm ``||G^1/2 (W - W') H^1/2||^2``, which a truncated SVD of ``G^1/2 W H^1/2``
minimises. With ``G = 1`` it is truncation-aware whitening (SVD-LLM, arXiv 2403.07378). With ``G`` the second moments of
the gradient with respect to the outputs it is the Kronecker-factored Fisher information (K-FAC, arXiv 1503.05671), and
the errors of all layers have the same unit, that of the loss.

``G`` and ``H`` may be singular: there may be fewer inputs than features, or all inputs may lie in a subspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import (
    Array,
    asarray,
    cast,
    detached,
    in_range,
    namespace,
    promoted,
    require_finite,
    require_matrix,
    to_numpy,
)
from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.linalg import eigh, named

__all__ = ["WeightedLowRank", "damped_low_rank", "projected_low_rank", "weighted_low_rank"]


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


def weighted_low_rank(
    matrix: Array,
    gram: Array | None = None,
    output_gram: Array | None = None,
    *,
    ridge: float = 1e-8,
    name: str = "matrix",
) -> WeightedLowRank:
    """Best low-rank approximations of a matrix, with weights of inputs and outputs; computed in float64.

    Args:
        matrix: ``W (out, in)``, any float type.
        gram: ``H (in, in)``, second moments of the inputs, up to a factor; the identity if not given.
        output_gram: ``G (out, out)``, weights of the outputs, up to a factor; the identity if not given.
        ridge: added to the diagonals of ``H`` and ``G``, relative to their mean diagonals, so that directions absent
            from the calibration data keep a small weight.
        name: name of the matrix in errors.

    Raises:
        ShapeError: moments that do not fit the matrix.
        ArgumentError: a negative ridge.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> W, x = random.normal(size=(8, 6)), random.normal(size=(100, 6)) * [9, 3, 1, 0.1, 0.1, 0.1]
        >>> fit = weighted_low_rank(W, x.T @ x)
        >>> left, right = fit.factors(2)
        >>> error = np.linalg.norm(x @ (W - left @ right).T) / np.linalg.norm(x @ W.T)
        >>> bool(np.isclose(error, fit.relative_error(2), rtol=1e-4)), round(fit.relative_error(2), 2)
        (True, 0.06)
    """
    weight64 = _checked64(matrix, name)
    if not ridge >= 0.0:
        raise ArgumentError(f"ridge must be a number of at least 0, got {ridge!r}")
    out, in_ = weight64.shape
    H, power_H = symmetric_moments(gram, in_, ridge, weight64, f"the moments of the inputs of {name}")
    G, power_G = symmetric_moments(output_gram, out, ridge, weight64, f"the weights of the outputs of {name}")
    unit, power = in_range(weight64)
    transposed = namespace(unit).matrix_transpose(unit)
    power = 2 * power + power_H + power_G
    with named(name):
        if out <= in_:
            return Projector(G)(weight64, unit @ (transposed if H is None else H @ transposed), power)
        return Projector(H)(weight64, transposed @ (unit if G is None else G @ unit), power)


def projected_low_rank(matrix: Array, metric: Array | None, moments: Array, *, name: str = "matrix") -> WeightedLowRank:
    """:func:`weighted_low_rank` from moments on the smaller side of the matrix only; computed in float64.

    With ``out <= in`` the metric is ``G`` and the moments are ``E[y y^T] = W H W^T``. Otherwise the metric is ``H`` and
    the moments are ``W^T G W``, the moments of the gradient with respect to the inputs. Both are square, with the
    smaller side of the matrix.

    Args:
        matrix: ``W (out, in)``, any float type.
        metric: symmetric, positive semidefinite matrix; the identity if not given.
        moments: symmetric, positive semidefinite matrix.
        name: name of the matrix in errors.

    Raises:
        ShapeError: a metric or moments of another size than the smaller side.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(3, 5))
        >>> np.allclose(projected_low_rank(W, None, W @ W.T).squares, weighted_low_rank(W).squares)
        True
    """
    weight64 = _checked64(matrix, name)
    side = min(weight64.shape)
    M, power_M = symmetric_moments(metric, side, 0.0, weight64, f"the metric of {name}")
    N, power_N = symmetric_moments(moments, side, 0.0, weight64, f"the moments of {name}")
    with named(name):
        return Projector(M)(weight64, N, power_M + power_N)


def damped_low_rank(
    matrix: Array, metric: Array, moments: Array, dampings: Sequence[float], *, name: str = "matrix"
) -> Iterator[WeightedLowRank]:
    """:func:`projected_low_rank` with several numbers added to the weights ``G`` of all outputs, one after another.

    With ``out <= in`` the metric is ``G + s I``, otherwise the moments are ``W^T (G + s I) W``. The metric takes one
    eigenvalue decomposition for all of them.

    Args:
        matrix: ``W (out, in)``, any float type.
        metric: ``G`` with ``out <= in``, otherwise ``H``.
        moments: ``W H W^T`` with ``out <= in``, otherwise ``W^T G W``.
        dampings: the numbers ``s``, at least 0.
        name: name of the matrix in errors.

    Raises:
        MPOError: see :func:`projected_low_rank`.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(3, 5))
        >>> fits = damped_low_rank(W, np.diag([1.0, 2.0, 3.0]), W @ W.T, [0.5, 2.0])
        >>> damped = projected_low_rank(W, np.diag([1.5, 2.5, 3.5]), W @ W.T)
        >>> np.allclose(next(fits).squares, damped.squares)
        True
    """
    weight64 = _checked64(matrix, name)
    side, wide = min(weight64.shape), weight64.shape[0] <= weight64.shape[1]
    M, power_M = symmetric_moments(metric, side, 0.0, weight64, f"the metric of {name}")
    of_moments = f"the moments of {name}"
    with named(name):
        if wide:
            N, power_N = symmetric_moments(moments, side, 0.0, weight64, of_moments)
            for projector in Projector.shifted(M, [math.ldexp(damping, -power_M) for damping in dampings]):
                yield projector(weight64, N, power_M + power_N)
            return
        projector, product = Projector(M), namespace(weight64).matrix_transpose(weight64) @ weight64
        moments64 = cast(promoted(detached(moments), of_moments), "float64")
        for damping in dampings:
            N, power_N = symmetric_moments(moments64 + damping * product, side, 0.0, weight64, of_moments)
            yield projector(weight64, N, power_M + power_N)


def _checked64(matrix: Array, name: str) -> Array:
    require_matrix(matrix, name)
    weight64 = cast(promoted(detached(matrix), name), "float64")
    require_finite(weight64, name)
    return weight64


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


def symmetric_moments(
    moments: Array | None, size: int, ridge: float, like: Array, name: str
) -> tuple[Array | None, int]:
    """Validate second moments, symmetrise them in float64, and add ``ridge`` times their mean diagonal to the diagonal.

    Returns:
        The moments in the range of safe products, and the power of two that multiplies them.

    Args:
        moments: ``(size, size)``, or None, which is returned.
        size: number of features.
        ridge: share of the mean diagonal that is added.
        like: an array of the required library and device.
        name: name of the moments in errors.

    Raises:
        ShapeError: another shape.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries, or a negative trace.
    """
    if moments is None:
        return None, 0
    if tuple(moments.shape) != (size, size):
        raise ShapeError(f"{name} must be of shape ({size}, {size}), got {tuple(moments.shape)}")
    moments64 = cast(promoted(detached(moments), name), "float64")
    require_finite(moments64, name)
    moments64, exponent = in_range(moments64)
    xp = namespace(moments64, like)
    mean = float(xp.sum(xp.linalg.diagonal(moments64))) / size
    if mean < 0:
        raise NonFiniteError(f"{name} have a negative trace, which is impossible for second moments; check their sum")
    symmetric = (moments64 + xp.matrix_transpose(moments64)) / 2
    return symmetric + ridge * mean * asarray(np.eye(size), moments64), exponent


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
