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

import numpy as np

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
)
from mpochain.decomposition.projector import Projector, WeightedLowRank
from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.linalg import named

__all__ = ["damped_low_rank", "projected_low_rank", "weighted_low_rank"]


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
    side, outputs_are_fewer = min(weight64.shape), weight64.shape[0] <= weight64.shape[1]
    M, power_M = symmetric_moments(metric, side, 0.0, weight64, f"the metric of {name}")
    of_moments = f"the moments of {name}"
    with named(name):
        if outputs_are_fewer:
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
