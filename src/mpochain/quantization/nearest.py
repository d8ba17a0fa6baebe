"""Rounding of a matrix to the nearest values of its groups' grids."""

from __future__ import annotations

from torch import Tensor

from mpochain.quantization.codes import Quantized, on_grid
from mpochain.quantization.grid import checked_matrix, grids
from mpochain.quantization.scheme import Scheme

__all__ = ["nearest"]


def nearest(
    matrix: Tensor, scheme: Scheme, column_weights: Tensor | None = None, *, name: str = "the matrix"
) -> Quantized:
    """Round each entry of a matrix to the nearest value of its group's grid.

    Args:
        matrix: ``(rows, columns)``, any float type.
        scheme: bits, group and symmetry.
        column_weights: ``(columns,)``, nonnegative weights of the squared errors for which the grids are searched, such
            as the mean squares of a layer's inputs; equal if not given.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: entries that are too large or too small for float16 scales.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: no matrix, or another number of weights than columns.

    Example:
        >>> import torch
        >>> W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        >>> for bits in (8, 4, 3, 2):
        ...     short = nearest(W, Scheme(bits))
        ...     print(bits, short.bytes, round(float((W - short.dequantized()).norm() / W.norm()), 2))
        8 8576 0.01
        4 4480 0.09
        3 3456 0.18
        2 2432 0.35
    """
    matrix32 = checked_matrix(matrix, scheme, name)
    scales, zeros = grids(matrix32, scheme, column_weights)
    return on_grid(matrix32, scales, zeros, scheme)
