"""Stored size of a compressed weight, and its work per input row."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Numbers"]


@dataclass(frozen=True)
class Numbers:
    """Stored size of a layer's weight, and its work per input row. The bias is not counted.

    Attributes:
        parameters: number of elements stored for the weight, without index buffers.
        bytes: size of all tensors stored for the weight, with index buffers and other integers.
        macs: multiply-adds per input row.
    """

    parameters: int
    bytes: int
    macs: int
