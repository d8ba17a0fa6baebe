"""Scale of the cores of a chain: equal norms, or all scale in the first core."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpochain.arrays import Array, namespace, norm

__all__ = ["equalised", "equalised_rows", "scaled_to_first"]


def equalised(cores: Sequence[Array], scale: float = 1.0) -> list[Array]:
    """Cores of ``scale`` times the matrix, all with the same Frobenius norm.

    Equal norms keep every core in the range of a short float type, and let an optimiser train all cores at the same
    rate. If a core is zero or the scale is 0, each core is only multiplied by ``scale``.

    Args:
        cores: non-empty arrays of any shape.
        scale: non-negative factor of the matrix.

    Example:
        >>> import numpy as np
        >>> cores = [np.full((1, 1, 1, 1), 8.0), np.full((1, 1, 1, 1), 2.0)]
        >>> [round(norm(core), 9) for core in equalised(cores)], [round(norm(core), 9) for core in equalised(cores, 4)]
        ([4.0, 4.0], [8.0, 8.0])
    """
    norms = [norm(core) for core in cores]
    if not scale or not all(norms):
        return [core * scale for core in cores]
    logarithm = (math.log(scale) + math.fsum(map(math.log, norms))) / len(cores)
    return [core * math.exp(logarithm - math.log(size)) for core, size in zip(cores, norms, strict=True)]


def equalised_rows(cores: Sequence[Array]) -> list[Array]:
    """:func:`equalised` for many small chains at once, one per row; a zero chain gets zero cores.

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


def scaled_to_first(cores: Sequence[Array]) -> tuple[Array, ...]:
    """Cores of the same matrix, in which all but the first have entries of mean square 1.

    The first core carries the scale. Zero cores are not changed.

    Args:
        cores: the large core, then the small ones.

    Example:
        >>> import numpy as np
        >>> [core.ravel().tolist() for core in scaled_to_first([np.ones((1, 2, 1, 1)), np.full((1, 1, 2, 1), -3.0)])]
        [[3.0, 3.0], [-1.0, -1.0]]
    """
    first, *others = cores
    xp = namespace(*cores)
    sizes = [float(xp.sqrt(xp.mean(core**2))) or 1.0 for core in others]
    return first * math.prod(sizes), *(core / size for core, size in zip(others, sizes, strict=True))
