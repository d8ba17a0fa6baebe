"""Units of an entangled embedding: index buffer, number of units per table, and dims, from constructor arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, DTypeError, SpecError

__all__ = ["Source", "count_of", "dims_of", "index_of"]

# Source of a row's units: the digits of its row number, the row number itself, or an index.
Source = Literal["digits", "own", "index"]


def index_of(index: Tensor, words: int, order: int | None) -> Tensor:
    """Copy an index ``(words, order)`` of units to int32, for use as a buffer.

    Raises:
        DTypeError: an index of another type than integers.
        ArgumentError: another shape, or units that are negative or exceed 31 bits.

    Example:
        >>> index_of(torch.tensor([[0, 1], [2, 1]]), 2, None).dtype
        torch.int32
    """
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise DTypeError(f"an index of units must hold integers, got {index.dtype}")
    if index.ndim != 2 or index.shape[0] != words or order not in (None, index.shape[1]):
        columns = "order" if order is None else order
        raise ArgumentError(
            f"the index of {words} words must have shape ({words}, {columns}), got {tuple(index.shape)}"
        )
    if index.device.type != "meta":
        low, high = (int(bound) for bound in index.long().aminmax())
        if low < 0 or high > torch.iinfo(torch.int32).max:
            raise ArgumentError(f"units must be from 0 to 2**31 - 1, got {low if low < 0 else high}")
    # A copy, so that the caller cannot change the buffer.
    return index.to(torch.int32, copy=True)


def dims_of(columns: int, order: int, dims: Iterable[int] | None) -> tuple[int, ...]:
    """Vector lengths of the places, with a product of at least ``columns``; all equal by default.

    Raises:
        SpecError: another number of dims than ``order``, or too small a product.

    Example:
        >>> dims_of(10, 2, None), dims_of(10, 2, (5, 2))
        ((4, 4), (5, 2))
    """
    if dims is None:
        return (_root(columns, order),) * order
    sizes = tuple(int(dim) for dim in dims)
    if len(sizes) != order or min(sizes) < 1 or math.prod(sizes) < columns:
        raise SpecError(f"expected {order} dims with a product of at least {columns}, got {sizes}")
    return sizes


def count_of(source: Source, words: int, order: int, index: Tensor | None, requested: int | None) -> int:
    """Number of units per table: as requested, or the smallest that the words need.

    Raises:
        ArgumentError: fewer units than the words need, or for ``"own"`` another number than the words.

    Example:
        >>> count_of("digits", 100, 2, None, None)
        10
    """
    if index is not None:
        if requested is None and index.device.type == "meta":
            raise ArgumentError("an index on the meta device does not say how many units there are; give unit_count=")
        needed = requested if index.device.type == "meta" else int(index.max()) + 1
    elif source == "own":
        needed = words
    else:
        needed = _root(words, order)
    assert needed is not None
    if requested is None:
        return max(needed, 1)
    if requested < needed:
        raise ArgumentError(f"{words} words need {needed} units, got unit_count={requested}")
    if source == "own" and requested != needed:
        raise ArgumentError(f"units='own' needs unit_count={needed}, one per word, got unit_count={requested}")
    return requested


def _root(number: int, order: int) -> int:
    """``ceil(number^(1/order))``, at least 1."""
    root = round(number ** (1 / order))
    root += root**order < number
    root -= root > 1 and (root - 1) ** order >= number
    return max(root, 1)
