"""Narrow sweep steps: number of small products from which batching them into one product is faster."""

from __future__ import annotations

import math

from mpochain.planning.machine import Machine

__all__ = ["least_batched"]

# More products than any call has, but within the 64-bit integers that operators take as arguments.
_NEVER = 1 << 62


def least_batched(kept: int, summed: int, after: int, machine: Machine) -> int:
    """Smallest number of products ``(K, C) @ (C, A)`` for which batching them into one product is faster.

    The time of narrow products is proportional to the entries of their matrices. One large product takes the time of
    its arithmetic, of moving the elements there and back, and of some extra calls. The constants were fitted to some 80
    shapes; see ``docs/decisions/0017-narrow-steps-batched.md``.

    Args:
        kept: ``K``, rows of the matrix.
        summed: ``C``, columns of the matrix.
        after: ``A``, columns of the state.
        machine: machine constants.

    Example:
        >>> least_batched(256, 256, 4, Machine()), least_batched(256, 256, 64, Machine()) > 10**12
        (2, True)
    """
    if not 1 < after < machine.narrow_columns:
        return _NEVER
    saved = kept * summed * (machine.narrow_entry_seconds - machine.multiply_add_seconds * after)
    gain = saved - machine.moved_element_seconds * after * (kept + summed)
    return math.floor(machine.batching_seconds / gain) + 1 if gain > 0 else _NEVER
