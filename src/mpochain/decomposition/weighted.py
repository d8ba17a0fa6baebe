"""The best low-rank matrix for the inputs a layer sees and the outputs that matter, in closed form.

Minimises ``E[(y - y')^T G (y - y')]`` over the matrices of rank ``r``, where ``y = W x``, ``y' = W' x`` and
``H = E[x x^T]``: the weighted norm ``||G^1/2 (W - W') H^1/2||``, whose best ``W'`` is a truncated SVD of
``G^1/2 W H^1/2``. With ``G = 1`` this is truncation-aware whitening (SVD-LLM, arXiv 2403.07378); with ``G`` the second
moments of the gradient by the outputs it is the Kronecker-factored Fisher information (K-FAC, arXiv 1503.05671), and
the errors of all layers are in one unit, that of the loss.

Both may be singular: inputs may be fewer than features, or never leave a subspace.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
from mpochain.errors import NonFiniteError, ShapeError, SpecError

__all__ = ["WeightedLowRank", "projected_low_rank", "weighted_low_rank"]


@dataclass(frozen=True, eq=False)
class WeightedLowRank:
    """The best approximations of every rank at once.

    Attributes:
        left: ``(out, k)``; the best matrix of rank ``r`` is ``left[:, :r] @ right[:r]``.
        right: ``(k, in)``.
        squares: ``(k,)``, what each rank takes away from the squared error, descending.
        basis: ``(s, k)`` and ``(k, s)``, with ``s`` the smaller side; their leading parts multiply to the projection
            that makes ``W`` the best matrix of a rank, see :meth:`projection`.
    """

    left: Array
    right: Array
    squares: NDArray[np.float64]
    basis: tuple[Array, Array]

    @property
    def errors(self) -> NDArray[np.float64]:
        """``(k + 1,)``, the squared weighted error of each rank from 0 to ``k``; the last is 0."""
        return np.append(np.cumsum(self.squares[::-1])[::-1], 0.0)

    def relative_error(self, rank: int) -> float:
        """Weighted norm of what rank ``rank`` leaves out over that of the whole."""
        errors = self.errors
        return float(np.sqrt(errors[min(rank, len(errors) - 1)] / errors[0])) if errors[0] else 0.0

    def projection(self, rank: int) -> Array:
        """``B (s, s)`` of rank ``r``; the best matrix is ``B W`` if ``out <= in``, otherwise ``W B^T``."""
        left, right = self.basis
        return left[:, :rank] @ right[:rank]

    def factors(self, rank: int) -> tuple[Array, Array]:
        """``(out, r)`` and ``(r, in)`` of the best matrix of rank ``r``, in float64."""
        return self.left[:, :rank], self.right[:rank]


def weighted_low_rank(
    matrix: Array,
    gram: Array | None = None,
    output_gram: Array | None = None,
    *,
    ridge: float = 1e-8,
    name: str = "matrix",
) -> WeightedLowRank:
    """The best approximations of a matrix under weights of its inputs and outputs; computed in float64.

    Args:
        matrix: ``W (out, in)``, any float type.
        gram: ``H (in, in)``, second moments of the inputs, up to a factor; the identity if not given.
        output_gram: ``G (out, out)``, weights of the outputs, up to a factor; the identity if not given.
        ridge: share of their mean diagonal that is added to the diagonals of both, so that directions which the
            calibration never met still count for a little.
        name: what to call the matrix in errors.

    Raises:
        ShapeError: moments that do not fit the matrix.
        SpecError: a negative ridge.
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
    wide = _wide(matrix, name)
    if not ridge >= 0.0:
        raise SpecError(f"ridge must be a number of at least 0, got {ridge!r}")
    out, in_ = wide.shape
    H = symmetric_moments(gram, in_, ridge, wide, f"the moments of the inputs of {name}")
    G = symmetric_moments(output_gram, out, ridge, wide, f"the weights of the outputs of {name}")
    transposed = namespace(wide).matrix_transpose(wide)
    if out <= in_:
        return Projector(G)(wide, wide @ (transposed if H is None else H @ transposed))
    return Projector(H)(wide, transposed @ (wide if G is None else G @ wide))


def projected_low_rank(matrix: Array, metric: Array | None, moments: Array, *, name: str = "matrix") -> WeightedLowRank:
    """The same from what the smaller side of a matrix shows, which is all that matters; computed in float64.

    With ``out <= in`` the metric is ``G`` and the moments are ``E[y y^T] = W H W^T``; otherwise the metric is ``H`` and
    the moments are ``W^T G W``, those of the gradient before ``W``. All are square, of the smaller side.

    Args:
        matrix: ``W (out, in)``, any float type.
        metric: symmetric, positive semidefinite; the identity if not given.
        moments: symmetric, positive semidefinite.
        name: what to call the matrix in errors.

    Raises:
        ShapeError: a metric or moments that are not of the smaller side.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(3, 5))
        >>> np.allclose(projected_low_rank(W, None, W @ W.T).squares, weighted_low_rank(W).squares)
        True
    """
    wide = _wide(matrix, name)
    side = min(wide.shape)
    M = symmetric_moments(metric, side, 0.0, wide, f"the metric of {name}")
    N = symmetric_moments(moments, side, 0.0, wide, f"the moments of {name}")
    return Projector(M)(wide, N)


def _wide(matrix: Array, name: str) -> Array:
    require_matrix(matrix, name)
    wide = cast(promoted(detached(matrix), name), "float64")
    require_finite(wide, name)
    return wide


class Projector:
    """Under one metric ``M``: ``B = M^-1/2 U U^T M^1/2`` with ``U`` of ``M^1/2 N M^1/2``, and ``B W``, or ``W B^T``.

    Args:
        metric: of the smaller side, see :func:`projected_low_rank`; its roots are taken once.
    """

    def __init__(self, metric: Array | None) -> None:
        self._root: Array | None = None
        self._inverse: Array | None = None
        if metric is not None:
            self._root, self._inverse = _roots(metric)

    def __call__(self, wide: Array, moments: Array) -> WeightedLowRank:
        """Every rank of a float64 matrix whose moments are ``N``."""
        xp = namespace(wide)
        root, inverse = self._root, self._inverse
        squares, U = _eigenvectors(moments if root is None else root @ moments @ root)
        left = U if inverse is None else inverse @ U
        right = xp.matrix_transpose(U if root is None else root @ U)
        if wide.shape[0] <= wide.shape[1]:
            return WeightedLowRank(left, right @ wide, squares, (left, right))
        return WeightedLowRank(wide @ xp.matrix_transpose(right), xp.matrix_transpose(left), squares, (left, right))


def symmetric_moments(given: Array | None, size: int, ridge: float, like: Array, name: str) -> Array | None:
    """Second moments ``(size, size)`` in float64, with a share of their mean diagonal added to it; checked."""
    if given is None:
        return None
    if tuple(given.shape) != (size, size):
        raise ShapeError(f"{name} must be of shape ({size}, {size}), got {tuple(given.shape)}")
    wide = cast(promoted(detached(given), name), "float64")
    require_finite(wide, name)
    xp = namespace(wide, like)
    mean = float(xp.sum(xp.linalg.diagonal(wide))) / size
    if mean < 0:
        raise NonFiniteError(f"{name} have a negative trace; second moments never have")
    return (wide + xp.matrix_transpose(wide)) / 2 + ridge * mean * asarray(np.eye(size), wide)


def _eigenvectors(symmetric: Array) -> tuple[NDArray[np.float64], Array]:
    """Eigenvalues, descending and not negative, and eigenvectors."""
    xp = namespace(symmetric)
    values, vectors = xp.linalg.eigh((symmetric + xp.matrix_transpose(symmetric)) / 2)
    descending = to_numpy(xp.flip(values, axis=0))
    return np.maximum(descending, 0.0), xp.flip(vectors, axis=1)


def _roots(symmetric: Array) -> tuple[Array, Array]:
    """Square root and its pseudo-inverse."""
    xp = namespace(symmetric)
    values, vectors = xp.linalg.eigh(symmetric)
    values = xp.where(values > 0, values, xp.zeros_like(values))
    sizes = xp.sqrt(values)
    kept = values > float(xp.max(values)) * 1e-14
    inverses = xp.where(kept, 1 / xp.where(kept, sizes, xp.ones_like(sizes)), xp.zeros_like(sizes))
    transposed = xp.matrix_transpose(vectors)
    return (vectors * sizes) @ transposed, (vectors * inverses) @ transposed
