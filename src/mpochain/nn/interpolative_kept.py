"""What an interpolative layer keeps between calls, so that calls without gradients take less time.

Rules and measurements: docs/decisions/0074 and 0075.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.decomposition import interpolative_parameters
from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.packed import PackedMatrix, packed
from mpochain.nn.interpolative_product import interpolative_product, product_in_blocks

__all__ = ["KeptFactors", "keeps_matrix", "kept_factors", "two_factors_pay"]

# Multiply-adds per row that the two products must save to be faster than the dense one in calls of few rows, in which
# look-ups and the calls themselves take time; in types of two bytes they take a larger part.
_LEAST_SAVED, _LEAST_SAVED_OF_TWO_BYTES = 1 << 15, 1 << 19
# On other devices, where look-ups were not measured: the largest share of the dense multiply-adds of two plain
# factors, and the multiply-adds that one more call costs.
_TWO_FACTORS, _CALL = 0.75, 1 << 16
# Rows of an input from which look-ups in types of two bytes take longer than packed products save.
_MANY_ROWS = 32
# A matrix with this multiple of its columns as rows is read faster by columns, as long stretches of memory.
_TALL = 1.5


def keeps_matrix(out: int, in_: int, rank: int, dtype: torch.dtype, *, rows: int = 1) -> bool:
    """Whether calls of so many rows are faster with the dense matrix.

    Example:
        >>> keeps_matrix(192, 576, 128, torch.float32), keeps_matrix(1536, 576, 272, torch.float32)
        (True, False)
    """
    few = dtype.itemsize == 2 and rows < _MANY_ROWS
    saved = out * in_ - interpolative_parameters(out, in_, rank)
    return saved <= (_LEAST_SAVED_OF_TWO_BYTES if few else _LEAST_SAVED)


def two_factors_pay(out: int, in_: int, rank: int) -> bool:
    """Whether two plain factors are taken for faster than the dense matrix, on devices other than the CPU.

    Example:
        >>> two_factors_pay(1536, 576, 272), two_factors_pay(576, 576, 300)
        (True, False)
    """
    dense, factors = out * in_, rank * (out + in_)
    return factors <= min(_TWO_FACTORS * dense, dense - _CALL)


@dataclass(frozen=True, eq=False)
class KeptFactors:
    """Copies of both factors.

    Attributes:
        packed: the stored rows ``(r, in)`` and the coefficients ``(out - r, r)``; None where this is not faster.
        by_columns: the coefficients with their columns contiguous, for calls of one row; None where this is not faster.
    """

    packed: tuple[PackedMatrix, PackedMatrix] | None
    by_columns: Tensor | None

    def product(self, x: Tensor, count: int, rows: Tensor, place: Tensor | None, bias: Tensor | None) -> Tensor | None:
        """``x (..., in)`` to ``(..., out)``; None where nothing that is kept makes this call faster.

        Args:
            x: the input.
            count: its number of rows.
            rows: the stored rows themselves.
            place: see :func:`mpochain.nn.interpolative_product.interpolative_product`.
            bias: added to the outputs.
        """
        # One row reads packed matrices of wider types no faster than plain ones.
        if self.packed is None or (count == 1 and x.dtype.itemsize > 2):
            return None if self.by_columns is None else interpolative_product(x, rows, self.by_columns, place, bias)
        looked_up_slowly = place is not None and count >= _MANY_ROWS and x.dtype.itemsize == 2
        if looked_up_slowly or x.dtype != rows.dtype or autocast_dtype(x) is not None:
            return None
        y = product_in_blocks(x.reshape(-1, x.shape[-1]), *self.packed, place, bias)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def kept_factors(rows: Tensor, coefficients: Tensor) -> KeptFactors | None:
    """What to keep of the factors of a layer; None where nothing makes calls faster.

    Args:
        rows: the stored rows ``(r, in)``, on the CPU.
        coefficients: the coefficients ``(out - r, r)``.
    """
    if not coefficients.shape[0]:
        return None
    first, second = packed(rows.detach()), packed(coefficients.detach())
    pair = (first, second) if isinstance(first, PackedMatrix) and isinstance(second, PackedMatrix) else None
    # Products in types of two bytes are those of oneDNN, which reads both layouts at one speed.
    tall = coefficients.shape[0] >= _TALL * coefficients.shape[1] and rows.dtype.itemsize > 2
    by_columns = coefficients.detach().t().contiguous().t() if tall else None
    return None if pair is None and by_columns is None else KeptFactors(pair, by_columns)
