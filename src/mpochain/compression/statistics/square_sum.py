"""Running sum of products of rows, for rows of any size of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.arrays import in_range, peak, times_power_of_two

__all__ = ["Slabs", "SquareSum", "compact", "unit_rows"]

_SLAB = 1 << 24  # float32 numbers; the allocator returns freed blocks of this size to the system

# Sums with a largest entry outside of these powers of two would lose small entries in float32.
_LEAST_EXPONENT, _LARGEST_EXPONENT = -60, 120


class Slabs:
    """Memory for the sums in large blocks, separate from the short-lived arrays of each batch.

    Sums of a megabyte each, allocated one by one between activations, fragmented the heap by as much as their total
    size.
    """

    def __init__(self) -> None:
        self._free: dict[torch.device, Tensor] = {}

    def square(self, size: int, device: torch.device) -> Tensor:
        """Allocate zeros ``(size, size)``."""
        count = size**2
        free = self._free.get(device)
        if free is None or len(free) < count:
            free = torch.zeros(max(_SLAB, count), dtype=torch.float32, device=device)
        self._free[device] = free[count:]
        return free[:count].view(size, size)


def unit_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows in float32 whose products neither overflow nor underflow, and the power of two that multiplies them.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0]]) * 2.0**100)
        (tensor([[0.3750, 0.5000]]), 103)
    """
    unit, exponent = in_range(rows)
    return unit.float(), exponent


def compact(values: Tensor, exponent: int) -> Tensor:
    """``values * 2**exponent`` in float32, or in float64 if float32 cannot hold the numbers.

    Example:
        >>> compact(torch.tensor([1.0]), -400).dtype
        torch.float64
    """
    unit, more = in_range(values)
    exponent += more
    if not exponent:
        return unit.float()
    held = _LEAST_EXPONENT <= exponent <= _LARGEST_EXPONENT
    return times_power_of_two(unit.float() if held else unit.double(), exponent)


class SquareSum:
    """Running sum ``(n, m)`` of products of rows, in float32 with a power of two of its own.

    Args:
        slabs: memory of a square sum; None to use the memory of the first product.

    Example:
        >>> total = SquareSum()
        >>> for rows in (torch.full((2, 1), 1e30), torch.full((2, 1), 2e30)):
        ...     total.add_rows(*unit_rows(rows))
        >>> total.mean(4)
        tensor([[2.5000e+60]], dtype=torch.float64)
    """

    def __init__(self, slabs: Slabs | None = None) -> None:
        self._slabs = slabs
        self._total: Tensor | None = None
        self._exponent = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._total is None

    def add_rows(self, rows: Tensor, exponent: int) -> None:
        """Add ``rows^T rows`` of rows ``(k, n)`` times a power of two."""
        self.add_product(rows, rows, 2 * exponent)

    def add_product(self, left: Tensor, right: Tensor, exponent: int) -> None:
        """Add ``left^T right`` of rows ``(k, n)`` and ``(k, m)``, times a power of two."""
        total, factor = self._prepared(left.shape[1], right.shape[1], left, exponent)
        total.addmm_(left.T, right, alpha=factor)

    def add(self, product: Tensor, exponent: int) -> None:
        """Add a product of rows ``(n, m)`` times a power of two."""
        total, factor = self._prepared(product.shape[0], product.shape[1], product, exponent)
        total.add_(product, alpha=factor)

    def doubled(self, size: int, device: torch.device) -> Tensor:
        """The sum ``(size, size)`` in float64, zeros if nothing was added."""
        if self._total is None:
            return torch.zeros(size, size, dtype=torch.float64, device=device)
        return times_power_of_two(self._total.double(), self._exponent)

    def become(self, total: Tensor | None) -> None:
        """Go on from another sum; None for nothing."""
        self._total, self._exponent = total, 0

    def mean(self, rows: int) -> Tensor:
        """The sum divided by a number of rows, see :func:`compact`."""
        assert self._total is not None
        self._total /= rows
        return compact(self._total, self._exponent)

    def _prepared(self, rows: int, columns: int, like: Tensor, exponent: int) -> tuple[Tensor, float]:
        """The sum at the larger of both powers of two, and the factor of what is added."""
        if self._total is None:
            if self._slabs is not None and rows == columns:
                self._total = self._slabs.square(rows, like.device)
            else:
                self._total = torch.zeros(rows, columns, dtype=torch.float32, device=like.device)
            self._exponent = exponent
        elif exponent != self._exponent and peak(like) > 0:
            if not peak(self._total):
                self._exponent = exponent
            elif exponent > self._exponent:
                self._total.mul_(2.0 ** max(self._exponent - exponent, -1000))
                self._exponent = exponent
        return self._total, 2.0 ** min(max(exponent - self._exponent, -1000), 0)
