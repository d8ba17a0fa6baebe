"""Scale of the cores of a chain: equal norms, or all scale in the first core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpochain.arrays import Array, cast, dtype_name, in_range, namespace, norm, peak, times_power_of_two
from mpochain.errors import NonFiniteError

__all__ = ["core_std", "equalised", "equalised_rows", "held", "multiplied", "scaled_to_first"]


def core_std(bonds: Sequence[int], weight_std: float) -> float:
    """Standard deviation of independent core entries for which the matrix entries have ``weight_std``.

    An entry of the matrix is a sum of ``prod(bonds)`` products of ``n`` independent zero-mean numbers, so
    ``var(W) = s^(2n) prod(bonds)``, and ``s = (weight_std / sqrt(prod(bonds)))^(1/n)``.

    Args:
        bonds: the ``n - 1`` inner bonds.
        weight_std: standard deviation of the entries of the matrix.

    Example:
        >>> core_std([16], weight_std=0.04)
        0.1
    """
    return (weight_std / math.sqrt(math.prod(bonds))) ** (1 / (len(bonds) + 1))


def equalised(cores: Sequence[Array], scale: float = 1.0, exponent: int = 0) -> list[Array]:
    """Cores of ``scale * 2**exponent`` times the matrix, all with the same Frobenius norm.

    Equal norms keep every core in the range of a short float type, and let an optimiser train all cores at the same
    rate. If a core is zero, the cores stay as they are, since their product is zero anyway; a scale of 0 gives zeros.

    Args:
        cores: non-empty arrays of any shape.
        scale: non-negative factor of the matrix.
        exponent: power of two that multiplies the scale, for a factor beyond the range of a float.

    Example:
        >>> import numpy as np
        >>> cores = [np.full((1, 1, 1, 1), 8.0), np.full((1, 1, 1, 1), 2.0)]
        >>> [round(norm(core), 9) for core in equalised(cores)], [round(norm(core), 9) for core in equalised(cores, 4)]
        ([4.0, 4.0], [8.0, 8.0])
    """
    ranged = [in_range(core) for core in cores]
    norms = [norm(core) for core, _ in ranged]
    if not scale:
        return [core * 0.0 for core in cores]
    if not all(norms):
        return list(cores)
    # Powers of two are counted apart from the mantissas, since logarithms of large numbers would lose digits.
    parts = [math.frexp(size) for size in (scale, *norms)]
    power = exponent + sum(part for _, part in parts) + sum(part for _, part in ranged)
    quotient, remainder = divmod(power, len(cores))
    logarithm = math.fsum(math.log(mantissa) for mantissa, _ in parts) + remainder * math.log(2)
    common = math.exp(logarithm / len(cores))
    return [
        times_power_of_two(core * (common / mantissa), quotient - part)
        for (core, _), (mantissa, part) in zip(ranged, parts[1:], strict=True)
    ]


def equalised_rows(cores: Sequence[Array]) -> list[Array]:
    """:func:`equalised` for many small chains at once, one per row; a chain with a zero core gets zero cores.

    Args:
        cores: float64 arrays ``(n, ...)``; row ``k`` of every array belongs to chain ``k``.

    Example:
        >>> import numpy as np
        >>> first, second = equalised_rows([np.array([[8.0], [0.0]]), np.array([[0.0, 2.0], [3.0, 0.0]])])
        >>> first.tolist(), second.tolist()
        ([[4.0], [0.0]], [[0.0, 4.0], [0.0, 0.0]])
    """
    xp = namespace(*cores)
    norms = [xp.linalg.vector_norm(xp.reshape(core, (core.shape[0], -1)), axis=1) for core in cores]
    nonzero = [xp.where(size > 0, size, xp.ones_like(size)) for size in norms]
    common = xp.exp(sum(map(xp.log, nonzero)) / len(cores))
    for size in norms:
        common = xp.where(size > 0, common, xp.zeros_like(common))
    return [
        core * xp.reshape(common / size, (-1, *(1,) * (core.ndim - 1)))
        for core, size in zip(cores, nonzero, strict=True)
    ]


def held(cores: Sequence[Array], like: Array) -> list[Array]:
    """Cores in the element type of ``like``, with equal norms if it cannot hold them otherwise.

    Raises:
        NonFiniteError: it cannot hold cores of equal norms either.

    Example:
        >>> import numpy as np
        >>> cores = [np.full((1, 1, 1, 1), 1e6), np.full((1, 1, 1, 1), 1e-2)]
        >>> [core.item() for core in held(cores, np.ones(1, dtype=np.float16))]
        [100.0, 100.0]
    """
    with np.errstate(over="ignore"):
        short = [cast(core, like) for core in cores]
    if dtype_name(like) != "float16" or _all_finite(short) or not _all_finite(cores):
        return short
    with np.errstate(over="ignore"):
        short = [cast(core, like) for core in equalised(cores)]
    if not _all_finite(short):
        raise NonFiniteError("the cores exceed the range of float16; use bfloat16 or float32, or scale the matrix down")
    return short


def _all_finite(cores: Sequence[Array]) -> bool:
    return not all(map(_is_readable, cores)) or all(math.isfinite(peak(core)) for core in cores)


def multiplied(cores: Sequence[Array], factor: Any) -> tuple[Array, ...]:
    """Cores of the matrix times a number: the first core is scaled, or all if it would leave its element type's range.

    Args:
        cores: ``(r_left, out, in, r_right)``.
        factor: a number, or an array of no axes.

    Example:
        >>> import numpy as np
        >>> first, second = multiplied([np.full((1, 1, 1, 1), 1e200), np.full((1, 1, 1, 1), 1e-200)], 1e200)
        >>> round(float(first[0, 0, 0, 0] * second[0, 0, 0, 0]) / 1e200, 9)
        1.0
    """
    first, *others = cores
    with np.errstate(over="ignore", under="ignore"):
        scaled = first * factor
    if not isinstance(factor, int | float) or not others or not _is_readable(first):
        return scaled, *others
    before, after = float(peak(first)), float(peak(scaled))
    smallest = float(namespace(first).finfo(first.dtype).smallest_normal)
    lost = after == 0 and before > 0 and factor != 0
    if (
        not math.isfinite(before)
        or not math.isfinite(factor)
        or smallest <= after < math.inf
        or (after == before * abs(factor) < math.inf and not lost)
    ):
        return scaled, *others
    mantissa, exponent = math.frexp(factor)
    positive = equalised(cores, abs(mantissa), exponent)
    return positive[0] * math.copysign(1.0, mantissa), *positive[1:]


def _is_readable(array: Array) -> bool:
    """Whether entries can be read: not on the meta device, nor in a function that JAX traces."""
    return "Tracer" not in type(array).__name__ and str(getattr(array, "device", "")) != "meta"


def scaled_to_first(cores: Sequence[Array]) -> tuple[Array, ...]:
    """Cores of the same matrix, in which all but the first have entries of mean square 1.

    The first core carries the scale. Zero cores are not changed.

    Args:
        cores: the large core, then the small ones.

    Example:
        >>> import numpy as np
        >>> large, small = scaled_to_first([np.ones((1, 2, 1, 1)), np.full((1, 1, 2, 1), -3.0)])
        >>> large.ravel().round(9).tolist(), small.ravel().round(9).tolist()
        ([3.0, 3.0], [-1.0, -1.0])
    """
    first, *others = cores
    sizes = [norm(core) / math.sqrt(math.prod(core.shape)) or 1.0 for core in others]
    return first * math.prod(sizes), *(core / size for core, size in zip(others, sizes, strict=True))
