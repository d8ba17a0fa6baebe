"""QR, singular value and eigenvalue decompositions, each with other routines in reserve."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from mpochain.arrays import Array, in_range, times_power_of_two
from mpochain.linalg.attempts import Result, batched, first_success

__all__ = ["eigh", "pivoted_qr", "qr", "svd", "svdvals"]


def qr(x: Array) -> tuple[Array, Array]:
    """Reduced QR: ``x (m, n) = Q (m, k) @ R (k, n)`` with ``k = min(m, n)`` and orthonormal columns of ``Q``.

    Raises:
        FactorizationError: every routine failed.
    """
    q, r = first_success(
        "QR decomposition", x, lambda xp, a: tuple(xp.linalg.qr(a, mode="reduced")), _qr_by_scipy, (0, 1)
    )
    return q, r


def svd(x: Array) -> tuple[Array, Array, Array]:
    """Reduced SVD ``x (.., m, n) = U (.., m, k) @ diag(s) @ Vh (.., k, n)``, singular values descending.

    Raises:
        FactorizationError: every routine failed.
    """

    def routine(xp: Any, a: Array) -> Result:
        return tuple(xp.linalg.svd(a, full_matrices=False))

    u, s, vh = first_success("singular value decomposition", x, routine, _svd_by_scipy, (0, 1, 0))
    return u, s, vh


def svdvals(x: Array) -> Array:
    """Singular values ``(k,)`` of a matrix, descending.

    Raises:
        FactorizationError: every routine failed.
    """
    kind = "singular value decomposition"
    (s,) = first_success(kind, x, lambda xp, a: (xp.linalg.svdvals(a),), lambda a: (_svd_by_scipy(a)[1],), (1,))
    return s


def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues ``(n,)``, ascending, and eigenvectors ``(n, n)`` as columns, of a symmetric matrix.

    Raises:
        FactorizationError: every routine failed.
    """
    values, vectors = first_success(
        "eigenvalue decomposition", x, lambda xp, a: tuple(xp.linalg.eigh(a)), _eigh_by_scipy, (1, 0)
    )
    return values, vectors


def pivoted_qr(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Triangle ``R (k, n)`` and column order ``(n,)`` of ``x[:, order] = Q R``, the QR decomposition with pivoting."""
    # Imported here, since it would take a third of the import time of the package.
    import scipy.linalg

    with contextlib.suppress(np.linalg.LinAlgError, ValueError, RuntimeError):
        triangle, order = scipy.linalg.qr(x, mode="r", pivoting=True)
        return triangle, order
    return _pivoted_by_projections(x)


def _pivoted_by_projections(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """:func:`pivoted_qr` by Gram-Schmidt, each projection done twice for its rounding errors."""
    unit, exponent = in_range(x)
    rest, order = unit.copy(), np.arange(unit.shape[1])
    count = min(unit.shape)
    triangle = np.zeros((count, unit.shape[1]))
    for k in range(count):
        sizes = np.linalg.norm(rest[:, k:], axis=0)
        pivot = k + int(np.argmax(sizes))
        for matrix in (rest, triangle):
            matrix[:, [k, pivot]] = matrix[:, [pivot, k]]
        order[[k, pivot]] = order[[pivot, k]]
        size = np.linalg.norm(rest[:, k])
        direction = rest[:, k] / (size or 1.0)
        triangle[k, k] = size
        for _ in range(2):
            part = direction @ rest[:, k + 1 :]
            triangle[k, k + 1 :] += part
            rest[:, k + 1 :] -= np.outer(direction, part)
    return times_power_of_two(triangle, exponent), order


@batched
def _svd_by_scipy(x: np.ndarray[Any, Any]) -> Result:
    """SVD by QR iteration; if that fails too, by the eigenvectors of the Gram matrix and two QR decompositions."""
    import scipy.linalg

    try:
        return tuple(scipy.linalg.svd(x, full_matrices=False, lapack_driver="gesvd"))
    except np.linalg.LinAlgError:
        return _svd_by_gram(x)


def _svd_by_gram(x: np.ndarray[Any, Any]) -> Result:
    """SVD ``(m, n)`` by the eigenvectors of the smaller Gram matrix."""
    import scipy.linalg

    if x.shape[0] < x.shape[1]:
        u, s, vh = _svd_by_gram(x.T)
        return vh.T, s, u.T
    _, v = _eigh_by_scipy(x.T @ x)
    # x v = u s up to rounding errors of the squares, which the QR decomposition removes from u.
    u, r = scipy.linalg.qr(x @ v[:, ::-1], mode="economic")
    s = np.diagonal(r)
    u, s = u * np.where(s < 0, -1.0, 1.0), np.abs(s)
    order = np.argsort(-s)
    return u[:, order], s[order], v[:, ::-1].T[order]


@batched
def _eigh_by_scipy(x: np.ndarray[Any, Any]) -> Result:
    """Eigenvectors by QR iteration, which converges where the faster drivers do not."""
    import scipy.linalg

    return tuple(scipy.linalg.eigh(x, driver="ev"))


@batched
def _qr_by_scipy(x: np.ndarray[Any, Any]) -> Result:
    import scipy.linalg

    return tuple(scipy.linalg.qr(x, mode="economic"))
