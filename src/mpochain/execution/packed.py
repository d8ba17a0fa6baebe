"""Matrices in the layout in which oneDNN multiplies with them, for products that are repeated.

A product of few rows takes less time to compute than to bring a matrix into this layout, which oneDNN does at every
call of ``F.linear``, and MKL in its own way. Kept between calls, in place of the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.kernels.onednn import is_faster_than_mkl

__all__ = ["PackedMatrix", "packed", "product"]

# Number of rows that the layout is chosen for. It serves all numbers: a layout for one row gains little for one row,
# and loses much for many.
_ROWS = 512


class PackedMatrix:
    """A matrix ``(out, in)`` that oneDNN multiplies with.

    Args:
        matrix: without gradients, on the CPU.

    Attributes:
        shape: ``(out, in)``.
        dtype: element type.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self._numbers: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), _ROWS)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x (..., in)`` to ``(..., out)``, like ``F.linear``."""
        autocast = autocast_dtype(x)
        if autocast is not None:
            x, bias = x.to(autocast), None if bias is None else bias.to(autocast)
        same = x.dtype == self.dtype and (bias is None or bias.dtype == self.dtype)
        if same and type(x) is Tensor and x.numel() and forward_ad._current_level < 0:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._numbers, bias, "none", [], "")
            return y
        return F.linear(x, self._numbers.to_dense(), bias)


def packed(matrix: Tensor) -> Tensor | PackedMatrix:
    """The matrix in the layout of oneDNN where products with it are faster then; otherwise the matrix itself.

    That is in bfloat16 on processors that multiply it, and in float32 where oneDNN is faster than MKL.

    Example:
        >>> matrix, x = torch.randn(3, 4), torch.ones(2, 4)
        >>> torch.allclose(product(x, packed(matrix)), x @ matrix.T, atol=1e-6)
        True
    """
    plain = type(matrix) is Tensor and matrix.device.type == "cpu" and matrix.ndim == 2 and bool(matrix.numel())
    if not plain or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return matrix
    if matrix.dtype == torch.bfloat16:
        faster = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        faster = matrix.dtype == torch.float32 and is_faster_than_mkl()
    return PackedMatrix(matrix) if faster else matrix


def product(x: Tensor, matrix: Tensor | PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of a matrix that may be packed."""
    return F.linear(x, matrix, bias) if isinstance(matrix, Tensor) else matrix(x, bias)
