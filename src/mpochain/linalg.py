"""Matrix factorisations for NumPy, PyTorch and JAX that survive a failure of LAPACK.

On rare finite matrices LAPACK's fast drivers do not converge, and GPU libraries fail on a few more. Each function here
tries the library's own routine, then the same routine on the matrix in float64 and with its largest entry near 1, and
then another algorithm. Only this module calls factorisations, so no caller meets the errors of a library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpochain.arrays import Array, asarray, cast, in_range, namespace, peak, times_power_of_two, to_numpy
from mpochain.errors import FactorizationError, NonFiniteError

__all__ = ["eigh", "inverse", "named", "pivoted_qr", "qr", "solve", "solve_triangular", "svd", "svdvals"]

_Result = tuple[Array, ...]
_Factorisation = Callable[[np.ndarray[Any, Any]], _Result]


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name of a matrix or layer in front of the message of a failed factorisation or an overflow.

    Example:
        >>> with named("up"):
        ...     raise FactorizationError("the SVD did not converge")
        Traceback (most recent call last):
        mpochain.errors.FactorizationError: up: the SVD did not converge
    """
    try:
        yield
    except (FactorizationError, NonFiniteError) as error:
        message = str(error)
        raise (error if name in message else type(error)(f"{name}: {message}")) from error.__cause__


def qr(x: Array) -> tuple[Array, Array]:
    """Reduced QR: ``x (m, n) = Q (m, k) @ R (k, n)`` with ``k = min(m, n)`` and orthonormal columns of ``Q``.

    Raises:
        FactorizationError: every routine failed.
    """
    q, r = _first("QR decomposition", x, lambda xp, a: tuple(xp.linalg.qr(a, mode="reduced")), _qr_by_scipy, (0, 1))
    return q, r


def svd(x: Array) -> tuple[Array, Array, Array]:
    """Reduced SVD ``x (.., m, n) = U (.., m, k) @ diag(s) @ Vh (.., k, n)``, singular values descending.

    Raises:
        FactorizationError: every routine failed.
    """

    def routine(xp: Any, a: Array) -> _Result:
        return tuple(xp.linalg.svd(a, full_matrices=False))

    u, s, vh = _first("singular value decomposition", x, routine, _svd_by_scipy, (0, 1, 0))
    return u, s, vh


def svdvals(x: Array) -> Array:
    """Singular values ``(k,)`` of a matrix, descending.

    Raises:
        FactorizationError: every routine failed.
    """
    kind = "singular value decomposition"
    (s,) = _first(kind, x, lambda xp, a: (xp.linalg.svdvals(a),), lambda a: (_svd_by_scipy(a)[1],), (1,))
    return s


def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues ``(n,)``, ascending, and eigenvectors ``(n, n)`` as columns, of a symmetric matrix.

    Raises:
        FactorizationError: every routine failed.
    """
    values, vectors = _first(
        "eigenvalue decomposition", x, lambda xp, a: tuple(xp.linalg.eigh(a)), _eigh_by_scipy, (1, 0)
    )
    return values, vectors


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
        if _finite(x):
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
            if _finite(x):
                return x
    raise _failure("solution of a triangular system", triangle, failure) from failure


def _first(
    kind: str,
    x: Array,
    routine: Callable[[Any, Array], _Result],
    other: _Factorisation,
    scaled: tuple[int, ...],
) -> _Result:
    """Result of the first routine that succeeds.

    Args:
        kind: name of the factorisation in errors.
        x: the matrix.
        routine: factorisation by the library of ``x``.
        other: factorisation by another algorithm, of a float64 NumPy array.
        scaled: for each part of the result, 1 if it is proportional to the matrix, else 0.
    """
    xp = namespace(x)
    try:
        result = routine(xp, x)
        # JAX and some GPU routines return NaN instead of raising.
        if all(map(_finite, result)):
            return result
        failure: Exception | None = None
    except (np.linalg.LinAlgError, RuntimeError) as error:
        if "memory" in str(error).lower():
            raise
        failure = error
    if not _finite(x):
        raise _failure(kind, x, failure) from failure
    unit, exponent = in_range(cast(x, "float64"))

    def by_library() -> _Result:
        return routine(xp, unit)

    def by_other() -> _Result:
        return tuple(asarray(np.ascontiguousarray(part), unit) for part in other(to_numpy(unit)))

    for attempt in (by_library, by_other):
        try:
            result = attempt()
        except (np.linalg.LinAlgError, RuntimeError, ValueError) as error:
            failure = error
            continue
        if all(map(_finite, result)):
            return tuple(
                cast(times_power_of_two(part, exponent) if power else part, x)
                for part, power in zip(result, scaled, strict=True)
            )
    raise _failure(kind, x, failure) from failure


def _finite(x: Array) -> bool:
    xp = namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def _failure(kind: str, x: Array, cause: Exception | None) -> FactorizationError:
    shape = "x".join(map(str, x.shape))
    if not _finite(x):
        return FactorizationError(
            f"the {kind} of a {shape} matrix got NaN or infinite entries, from an overflow in earlier products; scale "
            "the weights or data down, or compute in float64"
        )
    reason = "" if cause is None else f" ({cause})"
    return FactorizationError(
        f"the {kind} of a {shape} matrix did not converge{reason}; leave the layer out with ignore=, choose another "
        "method, or add a little noise to the matrix"
    )


def _batched(function: _Factorisation) -> _Factorisation:
    """The function of one matrix applied to every matrix of a stack."""

    def apply(x: np.ndarray[Any, Any]) -> _Result:
        if x.ndim == 2:
            return function(x)
        results = [function(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
        return tuple(np.stack(parts).reshape(*x.shape[:-2], *parts[0].shape) for parts in zip(*results, strict=True))

    return apply


@_batched
def _svd_by_scipy(x: np.ndarray[Any, Any]) -> _Result:
    """SVD by QR iteration; if that fails too, by the eigenvectors of the Gram matrix and two QR decompositions."""
    import scipy.linalg

    try:
        return tuple(scipy.linalg.svd(x, full_matrices=False, lapack_driver="gesvd"))
    except np.linalg.LinAlgError:
        return _svd_by_gram(x)


def _svd_by_gram(x: np.ndarray[Any, Any]) -> _Result:
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


@_batched
def _eigh_by_scipy(x: np.ndarray[Any, Any]) -> _Result:
    """Eigenvectors by QR iteration, which converges where the faster drivers do not."""
    import scipy.linalg

    return tuple(scipy.linalg.eigh(x, driver="ev"))


@_batched
def _qr_by_scipy(x: np.ndarray[Any, Any]) -> _Result:
    import scipy.linalg

    return tuple(scipy.linalg.qr(x, mode="economic"))
