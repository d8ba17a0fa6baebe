"""Tensor-train decomposition of a matrix by a left-to-right sweep, for any algorithm that splits one unfolding.

Source: I. Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33 (2011), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mpochain.arrays import (
    Array,
    cast,
    detached,
    in_range,
    ldexp,
    namespace,
    norm,
    promoted,
    require_finite,
    require_matrix,
)
from mpochain.decomposition.interleave import interleave
from mpochain.decomposition.scaling import equalised
from mpochain.decomposition.zero import zero_cores
from mpochain.errors import SpecError
from mpochain.linalg import named
from mpochain.spec import ChainSpec

__all__ = ["Decomposition", "Split", "check_cutoff", "retained_rank", "sweep"]

Split = Callable[[Array, int, float | None], tuple[Array, Array, float]]
"""``(matrix (m, n), max_rank, tolerance) -> (Q (m, r), rest (r, n), discarded)``.

``Q`` has orthonormal columns, ``rest = Q^T matrix``, and ``discarded`` is the squared Frobenius norm of
``matrix - Q rest``. ``tolerance`` is the largest squared norm that may be discarded to make ``r`` smaller than
``max_rank``; with ``None``, ``r`` does not depend on the singular values.
"""


@dataclass(frozen=True)
class Decomposition:
    """Cores of a matrix, and the exact squared error that each bond contributes.

    Attributes:
        cores: arrays of shape ``(r_left, out, in, r_right)``.
        discarded: squared Frobenius norm discarded at each inner bond, relative to the squared norm of the matrix.
        norm: Frobenius norm of the decomposed matrix; infinite if it exceeds float64.
    """

    cores: tuple[Array, ...]
    discarded: tuple[float, ...]
    norm: float

    @property
    def relative_error(self) -> float:
        """``||W - chain|| / ||W||``, 0 for a zero matrix.

        The discarded blocks are orthogonal to each other and to the kept part, so their squares add up. Rounding of
        the arithmetic (and of a cast back to a shorter type) is not included.
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
    """Number of leading singular values to keep, and the squared norm of the others.

    Args:
        singular_values: descending, one axis.
        max_rank: largest number to keep.
        tolerance: largest squared norm that may be discarded to keep fewer than ``max_rank``; with ``None`` even zeros
            are kept, so that the rank does not depend on the data.

    Returns:
        The rank, at least 1, and the sum of the squares of the discarded values.

    Example:
        >>> import numpy as np
        >>> retained_rank(np.array([3.0, 2.0, 1.0]), max_rank=3, tolerance=1.5)
        (2, 1.0)
    """
    squares = [float(s) * float(s) for s in singular_values]
    rank = min(max_rank, len(squares))
    discarded = math.fsum(squares[rank:])
    while tolerance is not None and rank > 1 and discarded + squares[rank - 1] <= tolerance:
        rank -= 1
        discarded += squares[rank]
    return rank, discarded


def sweep(matrix: Array, spec: ChainSpec, split: Split, *, cutoff: float | None, name: str) -> Decomposition:
    """Decompose a matrix by splitting off one site after the other, starting with the first.

    Each of the ``n - 1`` splits may discard ``(cutoff ||W||)^2 / (n - 1)``, so that the error of the whole chain stays
    within ``cutoff ||W||``. The cores have equal Frobenius norms and carry no gradient history. For a zero matrix, see
    :func:`mpochain.decomposition.zero.zero_cores`.

    Args:
        matrix: ``(out_features, in_features)``, any float type.
        spec: dims, and the largest bonds.
        split: algorithm that splits one unfolding.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``, or ``None``.
        name: name of the matrix in errors.

    Raises:
        SpecError: the dims do not fit the matrix, or the cutoff is out of range.
        ShapeError: not a matrix.
        DTypeError: the matrix is not of a float type.
        NonFiniteError: it holds NaN or infinity.
        FactorizationError: a factorisation failed with every routine; the message starts with ``name``.
    """
    require_matrix(matrix, name)
    cutoff = check_cutoff(cutoff)
    weight, exponent = in_range(promoted(detached(matrix), name))
    total = norm(weight)
    if not math.isfinite(total):
        require_finite(weight, name)
    xp = namespace(weight)
    rest = interleave(weight, spec)
    if spec.sites == 1:
        # One site holds the matrix itself, whatever its range.
        core = xp.asarray(interleave(detached(matrix), spec), copy=True)
        core = xp.reshape(core, (1, spec.out_dims[0], spec.in_dims[0], 1))
        return Decomposition((core,), (), ldexp(total, exponent))
    # Scaled to unit norm, so that no square overflows or underflows.
    rest = rest / total if total else rest
    share = None if cutoff is None else cutoff**2 / max(spec.sites - 1, 1)
    left, cores, discarded = 1, [], []
    for k, bond in enumerate(spec.bonds):
        size = spec.out_dims[k] * spec.in_dims[k]
        with named(name):
            q, rest, dropped = split(xp.reshape(rest, (left * size, -1)), bond, share)
        cores.append(xp.reshape(q, (left, spec.out_dims[k], spec.in_dims[k], -1)))
        discarded.append(dropped)
        left = q.shape[1]
    cores.append(xp.reshape(rest, (left, spec.out_dims[-1], spec.in_dims[-1], 1)))
    scaled = equalised(cores, total, exponent) if total else zero_cores(cores, spec)
    return Decomposition(tuple(cast(core, matrix) for core in scaled), tuple(discarded), ldexp(total, exponent))
