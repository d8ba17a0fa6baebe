"""Rounding of a matrix with feedback of the error along its inputs (GPTQ, arXiv 2210.17323).

Columns are rounded one after another. The error of each is compensated by those after it, as far as the second moments
of the inputs allow. With ``B`` the unit triangle of the moments, see :mod:`mpochain.quantization.triangle`, column
``j`` is rounded as ``c_j = w_j + sum_{k<j} B_jk e_k``. With the differences ``d_k = c_k - q_k`` this is ``c_j = w_j -
sum_{k<j} (B^-1)_jk d_k``, a product that is added for a block of columns at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.quantization.codes import Quantized
from mpochain.quantization.grid import checked_matrix, group_grid
from mpochain.quantization.scheme import Scheme
from mpochain.quantization.triangle import Triangle, input_triangle

__all__ = ["input_feedback"]

# Columns whose corrections are added to the columns after them in one product.
_BLOCK = 64


def input_feedback(
    matrix: Tensor, scheme: Scheme, inputs: Tensor | Triangle | None, *, name: str = "the matrix"
) -> Quantized:
    """Round a matrix with feedback of the error along its inputs.

    The grid of a group is searched when its first column is reached, for the weights as corrected until then.

    Args:
        matrix: ``W (out, in)``, any float type.
        scheme: bits, group and symmetry.
        inputs: ``H (in, in)``, second moments of the inputs, up to a factor; 1 % of their mean diagonal is added to the
            diagonal. A :class:`Triangle` has its own damping, and serves several roundings. None for equal weights.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: entries that are too large or too small for float16 scales.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: moments of another size than the columns.

    Example:
        >>> from mpochain.quantization import nearest
        >>> random = torch.Generator().manual_seed(0)
        >>> W, x = torch.randn(8, 32, generator=random), torch.randn(100, 4, generator=random)
        >>> x = x @ torch.randn(4, 32, generator=random) + 0.1 * torch.randn(100, 32, generator=random)
        >>> def error(short):
        ...     return float((x @ (W - short.dequantized()).T).norm() / (x @ W.T).norm())
        >>> error(input_feedback(W, Scheme(3), x.T @ x)) < error(nearest(W, Scheme(3))) / 4
        True
    """
    matrix32 = checked_matrix(matrix, scheme, name)
    rows, columns = matrix32.shape
    factor = input_triangle(inputs, columns, name, matrix32.device).of_inputs(scheme.group)
    corrected = matrix32.T[factor.order]  # a row for each column, in the order of rounding
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=matrix32.device)
    scales = matrix32.new_empty(rows, scheme.groups(columns), dtype=torch.float16)
    zeros = torch.empty_like(scales, dtype=torch.uint8)
    first = 0
    for group in factor.groups:
        last = first + len(group)
        place = int(group[0]) // scheme.group
        grid = group_grid(corrected[first:last].T.contiguous(), scheme, factor.terms[first:last])
        scales[:, place], zeros[:, place] = grid
        scale, zero = (numbers.float() for numbers in grid)
        for start in range(first, last, _BLOCK):
            end = min(start + _BLOCK, last)
            inverse = factor.inverse[start:end, start:end]
            differences = matrix32.new_zeros(end - start, rows)
            for j in range(end - start):
                column = corrected[start + j] - inverse[j, :j] @ differences[:j]
                code = (column / scale).round_().add_(zero).clamp_(0, scheme.largest_code)
                codes[:, factor.order[start + j]] = code.to(torch.uint8)
                torch.sub(column, code.sub_(zero).mul_(scale), out=differences[j])
            corrected[end:].addmm_(factor.inverse[end:, start:end], differences, alpha=-1)
        first = last
    return Quantized(codes, scales, None if scheme.symmetric else zeros, scheme)
