"""Array functions for NumPy, PyTorch and JAX: element types, validation, range of numbers, norms.

Adds to array-api-compat: promotion of short float types, validation, and norms without overflow or underflow.
:mod:`mpochain.linalg` has the matrix factorisations.
"""

from __future__ import annotations

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
    "in_range",
    "ldexp",
    "namespace",
    "norm",
    "peak",
    "promoted",
    "relative_distance",
    "require_finite",
    "require_matrix",
    "times_power_of_two",
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


# Arrays whose largest entry is within these powers of two keep their scale: sums of squares, and products of a few such
# arrays, stay in the range of float32.
_SAFE_EXPONENT = 30

# Largest power of two in one multiplication, by element type.
_LARGEST_STEP = {"float16": 14, "bfloat16": 120, "float32": 120, "float64": 1000}


def peak(x: Array) -> float:
    """Largest absolute entry; 0 for an empty array.

    Example:
        >>> peak(np.array([1.0, -3.0]))
        3.0
    """
    xp = namespace(x)
    x = detached(x)
    return max(float(xp.max(x)), -float(xp.min(x))) if 0 not in x.shape else 0.0


def times_power_of_two(x: Array, exponent: int) -> Array:
    """``x * 2**exponent``, exact unless the result leaves the range of its element type.

    Example:
        >>> times_power_of_two(np.array([1e-300]), 1000) * 2.0**-1000
        array([1.e-300])
    """
    largest = _LARGEST_STEP.get(dtype_name(x), 120)
    with np.errstate(over="ignore", under="ignore"):
        while exponent:
            step = max(-largest, min(exponent, largest))
            x = x * 2.0**step
            exponent -= step
    return x


def in_range(x: Array) -> tuple[Array, int]:
    """``(y, exponent)`` with ``x = y * 2**exponent``, such that squares and products of entries of ``y`` are safe.

    The exponent is 0 for a zero array and unless the largest entry is above 2^30 or below 2^-30; otherwise the largest
    entry of ``y`` is between 1/2 and 1. Entries that are NaN or infinite leave the array unchanged.

    Example:
        >>> in_range(np.array([3.0])), in_range(np.array([3.0 * 2.0**900]))
        ((array([3.]), 0), (array([0.75]), 902))
    """
    largest = peak(x)
    if not math.isfinite(largest) or largest == 0.0:
        return x, 0
    exponent = math.frexp(largest)[1]
    return (x, 0) if abs(exponent) <= _SAFE_EXPONENT else (times_power_of_two(x, -exponent), exponent)


def ldexp(value: float, exponent: int) -> float:
    """``value * 2**exponent``; infinite if it exceeds float64.

    Example:
        >>> ldexp(0.75, 2), ldexp(1.0, 5000)
        (3.0, inf)
    """
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def norm(x: Array) -> float:
    """Frobenius norm, without overflow or underflow of the squares; infinite only if it exceeds float64."""
    x = detached(x)
    least, most = _SAFE_SQUARES
    squares = _sum_of_squares(x)
    if least < squares < most:
        return math.sqrt(squares)
    largest = peak(x)
    if largest == 0.0 or not math.isfinite(largest):
        return abs(largest)
    xp = namespace(x)
    exponent = math.frexp(largest)[1]
    scaled = xp.reshape(times_power_of_two(x, -exponent), (-1,))
    return ldexp(math.sqrt(float(xp.sum(scaled * scaled))), exponent)


def relative_distance(reference: Array, other: Array) -> float:
    """``||reference - other|| / ||reference||``, without overflow or underflow of the norms.

    Infinite if ``other`` has infinite entries, or if only the reference is zero; 0 if both are zero.

    Args:
        reference: float32 or float64.
        other: an array of the same library and shape, of any float type.

    Example:
        >>> relative_distance(np.full(2, 1e200), np.full(2, 1.5e200)), relative_distance(np.zeros(2), np.zeros(2))
        (0.5, 0.0)
    """
    unit, exponent = in_range(reference)
    difference = norm(unit - times_power_of_two(cast(other, unit), -exponent))
    if math.isnan(difference):
        return math.inf
    scale = norm(unit)
    return difference / scale if scale else (0.0 if difference == 0.0 else math.inf)
