"""Division of a matrix into tiles of equal shape, each within one group of columns.

Rows and columns are held in the order of rounding, padded to whole tiles. The columns of each tile are held in reverse,
so that the antidiagonals of a tile, whose entries are rounded at once, are its diagonals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpochain.quantization.scheme import Scheme
from mpochain.quantization.triangle import InputFactor, OutputFactor

__all__ = ["Tiling", "diagonal_blocks"]

# Rows and columns of a tile. With half as many, the work between tiles grows by more than that within them falls.
_SIDE = 64


class Tiling:
    """Bands of rows and strips of columns.

    Args:
        shape: rows and columns of the matrix.
        scheme: its scheme.
        outputs: factor for the rows, with their order.
        inputs: factor for the columns, with their order.

    Attributes:
        height: rows of a band.
        width: columns of a strip.
        bands: number of bands.
        strips: for each strip the index of its group.
        strips_of_group: number of strips of each group.
    """

    def __init__(self, shape: tuple[int, int], scheme: Scheme, outputs: OutputFactor, inputs: InputFactor) -> None:
        rows, columns = shape
        self.height, self.width = min(_SIDE, rows), min(_SIDE, columns, scheme.group)
        self.bands = -(-rows // self.height)
        self.strips: list[int] = []
        self.strips_of_group: dict[int, int] = {}
        positions: list[Tensor] = []
        first = 0
        for group in inputs.groups:
            index = int(group[0]) // scheme.group
            strips = torch.arange(first, first + len(group), device=group.device).split(self.width)
            # Padding is at the end of the order, so at the beginning of the reversed strip.
            positions += [pad(strip.flip(0), (self.width - len(strip), 0), value=-1) for strip in strips]
            self.strips += [index] * len(strips)
            self.strips_of_group[index] = len(strips)
            first += len(group)
        places = torch.cat(positions)
        # Column order[positions[k]] of the matrix is held in column places[k].
        self._places = (places >= 0).nonzero()[:, 0]
        self._positions = places[self._places]
        self._rows, self._columns = outputs.order, inputs.order[self._positions]
        self._padded = self.bands * self.height, len(self.strips) * self.width

    def spread(self, matrix: Tensor) -> Tensor:
        """A matrix in the order and with the padding of the tiles."""
        tiles = matrix.new_zeros(self._padded)
        tiles[: len(self._rows), self._places] = matrix[self._rows[:, None], self._columns]
        return tiles

    def gathered(self, tiles: Tensor) -> Tensor:
        """The matrix that :meth:`spread` has spread."""
        matrix = tiles.new_empty(len(self._rows), len(self._columns))
        matrix[self._rows[:, None], self._columns] = tiles[: len(self._rows), self._places]
        return matrix

    def gathered_rows(self, numbers: Tensor) -> Tensor:
        """Numbers of groups ``(bands, groups, height)`` as ``(rows, groups)``, in the order of the matrix."""
        ordered = numbers.transpose(1, 2).flatten(0, 1)[: len(self._rows)]
        result = torch.empty_like(ordered)
        result[self._rows] = ordered
        return result

    def spread_columns(self, numbers: Tensor) -> Tensor:
        """Numbers of columns, or a matrix between columns, that are in the order of rounding."""
        if numbers.ndim == 1:
            spread = numbers.new_zeros(self._padded[1])
            spread[self._places] = numbers[self._positions]
            return spread
        spread = numbers.new_zeros(self._padded[1], self._padded[1])
        spread[self._places[:, None], self._places] = numbers[self._positions[:, None], self._positions]
        return spread

    def spread_rows(self, matrix: Tensor) -> Tensor:
        """A matrix between rows that are in the order of rounding."""
        rest = self._padded[0] - len(self._rows)
        return pad(matrix, (0, rest, 0, rest))

    def by_tile(self, tiles: Tensor) -> Tensor:
        """View ``(bands, strips, height, width)`` of a spread matrix."""
        return tiles.view(self.bands, self.height, len(self.strips), self.width).transpose(1, 2)

    def band(self, index: int) -> slice:
        """Rows of a band."""
        return slice(index * self.height, (index + 1) * self.height)

    def strip(self, index: int, count: int = 1) -> slice:
        """Columns of a strip, or of several."""
        return slice(index * self.width, (index + count) * self.width)


def diagonal_blocks(matrix: Tensor, side: int) -> Tensor:
    """The blocks ``(count, side, side)`` on the diagonal of a square matrix."""
    count = matrix.shape[0] // side
    return matrix.view(count, side, count, side).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
