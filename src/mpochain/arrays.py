"""Array functions for NumPy, PyTorch and JAX: element types, validation, norms, QR and SVD.

Adds to array-api-compat: promotion of short float types, validation, a norm without overflow, and a singular value
decomposition with a fallback for matrices on which LAPACK's divide and conquer does not converge.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import array_api_compat
import numpy as np

from mpochain.errors import DTypeError, NonFiniteError, ShapeError

__all__ = [
    "asarray",
    "cast",
    "detached",
    "dtype_name",
    "namespace",
    "norm",
    "promoted",
    "qr",
    "require_finite",
    "require_matrix",
    "svd",
    "to_numpy",
    "zeros",
]

Array = Any
"""An array of NumPy, PyTorch or JAX."""

_COMPUTE_DTYPE = {"bfloat16": "float32", "float16": "float32", "float32": "float32", "float64": "float64"}


def namespace(*arrays: Array) -> Any:
    """The array API namespace of ``arrays``, which must belong to one library.

    Raises:
        DTypeError: an object that is no array of a supported library, or arrays of several libraries.

    Example:
        >>> namespace(np.ones(2)).__name__
        'array_api_compat.numpy'
    """
    try:
        return array_api_compat.array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(sorted({type(a).__module__ + "." + type(a).__name__ for a in arrays}))
        raise DTypeError(
            f"expected arrays of one library (NumPy, PyTorch or JAX), got {kinds}; convert them first"
        ) from error


def dtype_name(x: Array) -> str:
    """Name of the element type without its library, such as ``"float32"``.

    Example:
        >>> dtype_name(np.ones(1, dtype=np.float16))
        'float16'
    """
    return str(x.dtype).rsplit(".", maxsplit=1)[-1]


def cast(x: Array, like: Array | str) -> Array:
    """``x`` converted to the element type of ``like`` (an array, or a name such as ``"float32"``)."""
    dtype = getattr(namespace(x), like) if isinstance(like, str) else like.dtype
    return x if x.dtype == dtype else namespace(x).astype(x, dtype)


def detached(x: Array) -> Array:
    """``x`` without its gradient history, if its library has one."""
    return x.detach() if hasattr(x, "detach") else x


def _device(like: Array) -> Any:
    # JAX places new arrays itself, and a JAX array may have several devices.
    return None if array_api_compat.is_jax_array(like) else array_api_compat.device(like)


def asarray(values: np.ndarray[Any, Any], like: Array) -> Array:
    """NumPy ``values`` in the library and on the device of ``like``."""
    return namespace(like).asarray(values, device=_device(like))


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """``x`` as a NumPy array, without a copy if possible.

    Example:
        >>> to_numpy(np.ones(2))
        array([1., 1.])
    """
    return np.asarray(x.detach().cpu() if array_api_compat.is_torch_array(x) else x)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros with the library, element type and device of ``like``."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=_device(like))


def promoted(x: Array, name: str) -> Array:
    """``x`` in compute precision: bfloat16 and float16 become float32, float32 and float64 stay.

    Raises:
        DTypeError: integer, boolean or complex elements.
    """
    kind = dtype_name(x)
    if kind not in _COMPUTE_DTYPE:
        raise DTypeError(
            f"{name} has elements of type {kind}; expected one of {', '.join(_COMPUTE_DTYPE)}. Convert it to a float "
            "type first (quantised weights: dequantise them)"
        )
    return cast(x, _COMPUTE_DTYPE[kind])


def require_matrix(x: Array, name: str) -> None:
    """Raise ShapeError unless ``x`` is a matrix with at least one entry."""
    namespace(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(f"{name} must be a matrix (out, in) without empty axes, got shape {tuple(x.shape)}")


def require_finite(x: Array, name: str) -> None:
    """Raise NonFiniteError with the numbers of NaN and infinite entries of ``x``, if there are any."""
    # A finite sum of squares proves all entries finite; otherwise the squares may have overflowed, so test the entries.
    if math.isfinite(_sum_of_squares(x)):
        return
    xp = namespace(x)
    if bool(xp.all(xp.isfinite(x))):
        return
    nan = int(xp.sum(xp.astype(xp.isnan(x), xp.int64)))
    inf = int(xp.sum(xp.astype(xp.isinf(x), xp.int64)))
    raise NonFiniteError(
        f"{name} of shape {tuple(x.shape)} holds {nan} NaN and {inf} infinite entries; a decomposition needs finite "
        "numbers. Check how the tensor was computed or loaded"
    )


# Long enough for a fast product, short enough that the rounding error of a float32 sum stays below 1e-6.
_PIECE = 4096

# Outside this range, squares of entries may have overflowed or underflowed.
_SAFE_SQUARES = 1e-20, 1e30


def _sum_of_squares(x: Array) -> float:
    """Sum of squares, by inner products of pieces of ``x``, without an array of squares."""
    xp = namespace(x)
    flat = xp.reshape(x, (-1,))
    divisible = flat.shape[0] // _PIECE * _PIECE
    pieces = xp.reshape(flat[:divisible], (-1, _PIECE))
    rest = flat[divisible:]
    with np.errstate(over="ignore"):
        sums = xp.matmul(pieces[:, None, :], pieces[:, :, None])
        return float(xp.sum(cast(sums, "float64"))) + float(xp.sum(rest * rest))


def norm(x: Array) -> float:
    """Frobenius norm, without overflow or underflow of the squares."""
    x = detached(x)
    least, most = _SAFE_SQUARES
    squares = _sum_of_squares(x)
    if least < squares < most:
        return math.sqrt(squares)
    xp = namespace(x)
    peak = float(xp.max(xp.abs(x))) if 0 not in x.shape else 0.0
    if peak == 0.0 or not np.isfinite(peak):
        return peak
    scaled = xp.reshape(x, (-1,)) / peak
    return peak * float(np.sqrt(float(xp.sum(scaled * scaled))))


def qr(x: Array) -> tuple[Array, Array]:
    """Reduced QR: ``x (m, n) = Q (m, k) @ R (k, n)`` with ``k = min(m, n)`` and orthonormal columns of ``Q``."""
    return tuple(namespace(x).linalg.qr(x, mode="reduced"))


def svd(x: Array) -> tuple[Array, Array, Array]:
    """Reduced SVD ``x (m, n) = U (m, k) @ diag(s) @ Vh (k, n)``, singular values descending.

    On rare finite matrices LAPACK's divide and conquer does not converge. For these the factors come from the
    eigenvectors of the smaller Gram matrix in float64, and one QR restores the orthogonality lost by squaring.
    """
    xp = namespace(x)
    # NumPy and PyTorch raise different errors; JAX returns NaN instead.
    with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
        u, s, vh = xp.linalg.svd(x, full_matrices=False)
        if bool(xp.all(xp.isfinite(s))):
            return u, s, vh
    return _svd_by_gram(x)


def _svd_by_gram(x: Array) -> tuple[Array, Array, Array]:
    xp = namespace(x)
    if x.shape[0] < x.shape[1]:
        u, s, vh = _svd_by_gram(xp.matrix_transpose(x))
        return xp.matrix_transpose(vh), s, xp.matrix_transpose(u)
    x64 = cast(x, "float64")
    _, v = xp.linalg.eigh(xp.matrix_transpose(x64) @ x64)
    v = xp.flip(v, axis=-1)
    # x v = u s up to rounding errors of the squares, which remain in R; the SVD of R removes them.
    u, r = qr(x64 @ v)
    with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
        rotation, s, wh = xp.linalg.svd(r, full_matrices=False)
        if bool(xp.all(xp.isfinite(s))):
            return cast(u @ rotation, x), cast(s, x), cast(wh @ xp.matrix_transpose(v), x)
    s = xp.linalg.diagonal(r)
    signs = xp.where(s < 0, -xp.ones_like(s), xp.ones_like(s))
    s, u = s * signs, u * signs
    order = xp.argsort(s, descending=True)
    s, u, vh = (
        xp.take(s, order, axis=0),
        xp.take(u, order, axis=1),
        xp.take(xp.matrix_transpose(v), order, axis=0),
    )
    return cast(u, x), cast(s, x), cast(vh, x)
