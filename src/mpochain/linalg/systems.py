"""Solutions of linear systems, and the triangular factors of symmetric matrices."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from mpochain.arrays import Array, asarray, cast, namespace, peak
from mpochain.linalg.attempts import failure_of, is_finite
from mpochain.linalg.decompositions import eigh, qr

__all__ = ["cholesky", "inverse", "solve", "solve_triangular"]


def solve(a: Array, b: Array) -> Array:
    """Solution ``(n, k)`` of ``a x = b`` for a symmetric ``a (n, n)``; of least squares and norm if ``a`` is singular.

    Raises:
        FactorizationError: every routine failed.

    Example:
        >>> solve(np.diag([2.0, 0.0]), np.array([[4.0], [0.0]]))
        array([[2.],
               [0.]])
    """
    xp = namespace(a, b)
    with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
        x = xp.linalg.solve(a, b)
        if is_finite(x):
            return x
    values, vectors = eigh(a)
    largest = peak(values)
    if largest == 0.0:
        return xp.zeros_like(b)
    nonzero = xp.abs(values) > largest * values.shape[0] * float(xp.finfo(values.dtype).eps)
    inverses = xp.where(nonzero, 1 / xp.where(nonzero, values, xp.ones_like(values)), xp.zeros_like(values))
    return vectors @ (inverses[:, None] * (xp.matrix_transpose(vectors) @ b))


def inverse(a: Array) -> Array:
    """Inverse of a symmetric matrix, or its pseudo-inverse if it is singular.

    Raises:
        FactorizationError: every routine failed.
    """
    return solve(a, cast(asarray(np.eye(a.shape[0]), a), a))


def cholesky(a: Array) -> Array:
    """Lower triangle ``L (n, n)`` with a positive diagonal and ``a = L L^T``, for a symmetric positive definite ``a``.

    Eigenvalues that are negative or tiny, by rounding errors of a sum, count as tiny positive ones.

    Raises:
        FactorizationError: every routine failed.

    Example:
        >>> cholesky(np.array([[4.0, 2.0], [2.0, 2.0]]))
        array([[2., 0.],
               [1., 1.]])
    """
    xp = namespace(a)
    with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
        lower = xp.linalg.cholesky(a)
        if is_finite(lower):
            return lower
    values, vectors = eigh(a)
    least = peak(values) * values.shape[0] * float(xp.finfo(values.dtype).eps)
    roots = xp.sqrt(xp.where(values > least, values, xp.full_like(values, least)))
    _, upper = qr(roots[:, None] * xp.matrix_transpose(vectors))
    diagonal = xp.linalg.diagonal(upper)
    signs = xp.where(diagonal < 0, -xp.ones_like(diagonal), xp.ones_like(diagonal))
    return xp.matrix_transpose(signs[:, None] * upper)


def solve_triangular(triangle: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Solution ``(n, k)`` of ``triangle x = b`` for an upper triangle ``(n, n)`` without zeros on its diagonal.

    Raises:
        FactorizationError: every routine failed.
    """
    import scipy.linalg

    failure: Exception | None = None
    for routine in (scipy.linalg.solve_triangular, np.linalg.solve):
        try:
            x: np.ndarray[Any, Any] = routine(triangle, b)
        except (np.linalg.LinAlgError, ValueError, RuntimeError) as error:
            failure = error
        else:
            if is_finite(x):
                return x
    raise failure_of("solution of a triangular system", triangle, failure) from failure
