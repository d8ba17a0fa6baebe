"""The left-to-right sweep that turns a matrix into cores, given a way to split one unfolding in two.

Source: I. Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mpochain.arrays import Array, cast, detached, namespace, norm, promoted, require_finite, require_matrix
from mpochain.decomposition.interleave import interleave
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["Decomposition", "Split", "check_cutoff", "retained_rank", "sweep"]

Split = Callable[[Array, int, float | None], tuple[Array, Array, float]]
"""``(matrix (m, n), max_rank, tolerance) -> (Q (m, r), rest (r, n), discarded)``.

``Q`` has orthonormal columns, ``rest = Q^T matrix``, and ``discarded`` is the squared Frobenius norm of
``matrix - Q rest``. ``tolerance`` is the largest squared norm that may be discarded to make ``r`` smaller than
``max_rank``; with ``None`` it is not made smaller, whatever the singular values.
"""


@dataclass(frozen=True)
class Decomposition:
    """Cores and the exact account of what they leave out.

    Attributes:
        cores: arrays of shape ``(r_left, out, in, r_right)``.
        discarded: squared Frobenius norm dropped at each inner bond, over the squared norm of the matrix.
        norm: Frobenius norm of the decomposed matrix.
    """

    cores: tuple[Array, ...]
    discarded: tuple[float, ...]
    norm: float

    @property
    def relative_error(self) -> float:
        """``||W - chain|| / ||W||``, 0 for a zero matrix.

        The discarded blocks are orthogonal to each other and to what is kept, so their squares add up. Rounding of
        the arithmetic (and of a cast back to a shorter type) is not in it.
        """
        return math.sqrt(math.fsum(self.discarded))


def check_cutoff(cutoff: Any) -> float | None:
    """The cutoff as a float, or ``None`` for none.

    Raises:
        SpecError: not a number in ``[0, 1)``.
    """
    if cutoff is None:
        return None
    if isinstance(cutoff, bool) or not isinstance(cutoff, Real) or not 0.0 <= float(cutoff) < 1.0:
        raise SpecError(
            f"cutoff must be a number in [0, 1), got {cutoff!r}; it is the allowed error ||W - chain|| / ||W|| of the "
            "whole chain"
        )
    return float(cutoff)


def retained_rank(singular_values: Array, max_rank: int, tolerance: float | None) -> tuple[int, float]:
    """How many leading singular values to keep, and the squared weight of the others.

    Args:
        singular_values: descending, one axis.
        max_rank: most that may be kept.
        tolerance: squared weight that may be discarded beyond what ``max_rank`` forces; ``None`` for nothing, not even
            zeros, so that the rank does not depend on the data.

    Returns:
        The rank, at least 1, and the sum of the squares of the values not kept.

    Example:
        >>> import numpy as np
        >>> retained_rank(np.array([3.0, 2.0, 1.0]), max_rank=3, tolerance=1.5)
        (2, 1.0)
    """
    squares = [float(s) ** 2 for s in singular_values]
    rank = min(max_rank, len(squares))
    discarded = math.fsum(squares[rank:])
    while tolerance is not None and rank > 1 and discarded + squares[rank - 1] <= tolerance:
        rank -= 1
        discarded += squares[rank]
    return rank, discarded


def sweep(matrix: Array, spec: ChainSpec, split: Split, *, cutoff: float | None, name: str) -> Decomposition:
    """Split off one site after another, from the first.

    Each of the ``n - 1`` splits may discard ``(cutoff ||W||)^2 / (n - 1)``, so that the whole stays within
    ``cutoff ||W||``. The cores have equal Frobenius norms and carry no gradient history.
    """
    require_matrix(matrix, name)
    cutoff = check_cutoff(cutoff)
    wide = promoted(detached(matrix), name)
    total = norm(wide)
    if not math.isfinite(total):
        require_finite(wide, name)
    xp = namespace(wide)
    rest = interleave(wide, spec)
    # Of unit norm, so that no square overflows or vanishes.
    rest = rest / total if total else rest
    share = None if cutoff is None else cutoff**2 / max(spec.sites - 1, 1)
    left, cores, discarded = 1, [], []
    for k, bond in enumerate(spec.bonds):
        size = spec.out_dims[k] * spec.in_dims[k]
        q, rest, dropped = split(xp.reshape(rest, (left * size, -1)), bond, share)
        cores.append(xp.reshape(q, (left, spec.out_dims[k], spec.in_dims[k], -1)))
        discarded.append(dropped)
        left = q.shape[1]
    cores.append(xp.reshape(rest, (left, spec.out_dims[-1], spec.in_dims[-1], 1)))
    return Decomposition(tuple(cast(core, matrix) for core in _balanced(cores, total)), tuple(discarded), total)


def _balanced(cores: list[Array], scale: float) -> list[Array]:
    """Cores times ``scale`` in all, each of the same norm: none overflows a short type, and all learn alike."""
    norms = [norm(core) for core in cores]
    if not scale or not all(norms):
        return [core * scale for core in cores]
    logarithm = (math.log(scale) + sum(map(math.log, norms))) / len(cores)
    return [core * math.exp(logarithm - math.log(each)) for core, each in zip(cores, norms, strict=True)]
