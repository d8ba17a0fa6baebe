"""Choice of the units that a row of an entangled embedding is a product of: index, number of units, dims."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, DTypeError, SpecError

__all__ = ["Source", "count_of", "dims_of", "index_of"]

# How the units of a row are chosen: by the digits of its number, by the number itself, or by an index.
Source = Literal["digits", "own", "index"]


def index_of(index: Tensor, words: int, order: int | None) -> Tensor:
    """A copy of an index ``(words, order)`` of units for a buffer, int32.

    Raises:
        DTypeError: an index that is not of integers.
        ArgumentError: another shape, or units that are negative or beyond 31 bits.

    Example:
        >>> index_of(torch.tensor([[0, 1], [2, 1]]), 2, None).dtype
        torch.int32
    """
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise DTypeError(f"an index of units holds integers, got {index.dtype}")
    if index.ndim != 2 or index.shape[0] != words or order not in (None, index.shape[1]):
        columns = "order" if order is None else order
        raise ArgumentError(f"the index of {words} words has shape ({words}, {columns}), got {tuple(index.shape)}")
    if index.device.type != "meta":
        low, high = (int(bound) for bound in index.long().aminmax())
        if low < 0 or high > torch.iinfo(torch.int32).max:
            raise ArgumentError(f"the units of an index count from 0 and have 31 bits, got {low if low < 0 else high}")
    # A copy, so that nobody changes it from outside.
    return index.to(torch.int32, copy=True)


def dims_of(columns: int, order: int, dims: Iterable[int] | None) -> tuple[int, ...]:
    """The lengths of the vectors at each place, whose product is ``columns`` or more; equal ones by default.

    Raises:
        SpecError: dims of another number, or of too small a product.

    Example:
        >>> dims_of(10, 2, None), dims_of(10, 2, (5, 2))
        ((4, 4), (5, 2))
    """
    if dims is None:
        return (_root(columns, order),) * order
    sizes = tuple(int(dim) for dim in dims)
    if len(sizes) != order or min(sizes) < 1 or math.prod(sizes) < columns:
        raise SpecError(f"{order} dims whose product is {columns} or more are needed, got {sizes}")
    return sizes


def count_of(source: Source, words: int, order: int, index: Tensor | None, requested: int | None) -> int:
    """Units of each table: as requested, or as few as the words need.

    Raises:
        ArgumentError: fewer units than the words need, or more where each word has its own.

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
        raise ArgumentError(f"{words} words with units of their own have {needed} units, got unit_count={requested}")
    return requested


def _root(number: int, order: int) -> int:
    """The smallest integer whose power ``order`` is ``number`` or more, 1 at least."""
    root = round(number ** (1 / order))
    root += root**order < number
    root -= root > 1 and (root - 1) ** order >= number
    return max(root, 1)
