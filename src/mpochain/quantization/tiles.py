"""Tiles of a matrix that do not depend on each other, rounded together with feedback along their rows and columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Tiles"]


class Tiles:
    """Buffers of tiles in units of their grid; the columns of a tile are in reverse order.

    An antidiagonal of a tile, whose entries do not depend on each other, is then a diagonal of the buffer.

    Attributes:
        columns: ``(count, height, width)``, the weights with the feedback of earlier tiles along the inputs.
        rows: ``(count, height, width)``, the feedback of earlier tiles along the outputs.
        within_rows: ``(count, width, width)``, feedback along the inputs within a tile.
        within_columns: ``(count, height, height)``, feedback along the outputs within a tile.
        codes: ``(count, height, width)``, the result.
        differences: ``(count, height, width)``, columns after all feedback along the inputs, less the codes.
    """

    def __init__(self, count: int, height: int, width: int, largest_code: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(count, *shape, dtype=torch.float32, device=device)

        self._shape, self._largest_code = (height, width), largest_code
        self.columns, self.rows = zeros(height, width), zeros(height, width)
        self.codes, self.differences = zeros(height, width), zeros(height, width)
        self.within_columns, self.within_rows = zeros(height, height), zeros(width, width)
        # The differences of each column lie together here, those of each row in the other.
        self._transposed = zeros(width, height)
        self._views: dict[int, list[tuple[Tensor, ...]]] = {}

    def round(self, count: int) -> None:
        """Round the first ``count`` tiles."""
        self.differences.zero_()
        self._transposed.zero_()
        # Views are kept for few counts; what further tiles hold is finite and not read.
        count = min(1 << (count - 1).bit_length(), len(self.columns))
        if count not in self._views:
            self._views[count] = list(self._antidiagonals(count))
        vecdot = torch.linalg.vecdot
        for within_row, before, within_column, above, column, row, code, difference, transposed in self._views[count]:
            value = vecdot(within_row, before).add_(column)
            rounded = vecdot(within_column, above).add_(value).add_(row).round_()
            torch.clamp(rounded, 0, self._largest_code, out=code)
            torch.sub(value, code, out=difference)
            transposed.copy_(difference)

    def _antidiagonals(self, count: int) -> Iterator[tuple[Tensor, ...]]:
        """Views of the buffers for each antidiagonal."""
        height, width = self._shape
        for step in range(height + width - 1):
            offset = width - 1 - step
            low, high = max(0, -offset), min(height - 1, step) + 1
            i, j = slice(low, high), slice(low + offset, high + offset)
            above, before = slice(0, high - 1), slice(low + offset + 1, width)
            buffers = self.columns, self.rows, self.codes, self.differences
            yield (
                self.within_rows[:count, j, before],
                self.differences[:count, i, before],
                self.within_columns[:count, i, above],
                self._transposed[:count, j, above],
                *(buffer[:count].diagonal(offset, 1, 2) for buffer in buffers),
                self._transposed[:count].diagonal(-offset, 1, 2),
            )
