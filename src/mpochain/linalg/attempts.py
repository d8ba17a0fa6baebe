"""Attempts at a matrix factorisation by one routine after another, until one succeeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpochain.arrays import Array, asarray, cast, in_range, namespace, times_power_of_two, to_numpy
from mpochain.errors import FactorizationError, NonFiniteError

__all__ = ["Result", "batched", "failure_of", "first_success", "is_finite", "named"]

Result = tuple[Array, ...]
Factorisation = Callable[[np.ndarray[Any, Any]], Result]


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


def first_success(
    kind: str,
    x: Array,
    routine: Callable[[Any, Array], Result],
    other: Factorisation,
    scaled: tuple[int, ...],
) -> Result:
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
        if all(map(is_finite, result)):
            return result
        failure: Exception | None = None
    except (np.linalg.LinAlgError, RuntimeError) as error:
        if "memory" in str(error).lower():
            raise
        failure = error
    if not is_finite(x):
        raise failure_of(kind, x, failure) from failure
    unit, exponent = in_range(cast(x, "float64"))

    def by_library() -> Result:
        return routine(xp, unit)

    def by_other() -> Result:
        return tuple(asarray(np.ascontiguousarray(part), unit) for part in other(to_numpy(unit)))

    for attempt in (by_library, by_other):
        try:
            result = attempt()
        except (np.linalg.LinAlgError, RuntimeError, ValueError) as error:
            failure = error
            continue
        if all(map(is_finite, result)):
            return tuple(
                cast(times_power_of_two(part, exponent) if power else part, x)
                for part, power in zip(result, scaled, strict=True)
            )
    raise failure_of(kind, x, failure) from failure


def is_finite(x: Array) -> bool:
    """Whether no entry is NaN or infinite."""
    xp = namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def failure_of(kind: str, x: Array, cause: Exception | None) -> FactorizationError:
    """The error of a factorisation that no routine could compute."""
    shape = "x".join(map(str, x.shape))
    if not is_finite(x):
        return FactorizationError(
            f"the {kind} of a {shape} matrix got NaN or infinite entries, from an overflow in earlier products; scale "
            "the weights or data down, or compute in float64"
        )
    reason = "" if cause is None else f" ({cause})"
    return FactorizationError(
        f"the {kind} of a {shape} matrix did not converge{reason}; leave the layer out with ignore=, choose another "
        "method, or add a little noise to the matrix"
    )


def batched(function: Factorisation) -> Factorisation:
    """The function of one matrix applied to every matrix of a stack."""

    def apply(x: np.ndarray[Any, Any]) -> Result:
        if x.ndim == 2:
            return function(x)
        results = [function(matrix) for matrix in x.reshape(-1, *x.shape[-2:])]
        return tuple(np.stack(parts).reshape(*x.shape[:-2], *parts[0].shape) for parts in zip(*results, strict=True))

    return apply
