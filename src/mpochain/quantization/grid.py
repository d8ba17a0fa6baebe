"""Scales and zero points of groups, by a search for the least squared error.

The values of a group are rounded to ``(code - zero) * scale``. From the range of the values the search tries smaller
steps, which round most values more finely and cut off the largest. For fixed codes the best scale has a closed form, so
a few steps are enough. Squared errors are weighted, if weights of the columns are given.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpochain.arrays import detached, promoted, require_finite, require_matrix
from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.quantization.scheme import Scheme
from mpochain.wording import kind_of

__all__ = ["checked_matrix", "grids", "group_grid"]

# Scales are float16, a multiple of 2^-24 if they are small. Codes are chosen for the scale as it is stored, so that a
# few of these multiples are enough.
_LARGEST_SCALE, _SMALLEST_SCALE, _LEAST_STEP = 65504.0, 2.0**-22, 2.0**-24
# Smallest and largest step tried, relative to the step that covers the range of the values, and their number.
_RANGES = {8: (0.9, 1.0, 3), 4: (0.65, 1.05, 5), 3: (0.55, 1.05, 6), 2: (0.4, 1.15, 7)}
_STEPS = {bits: np.linspace(*numbers).tolist() for bits, numbers in _RANGES.items()}
# Attempts from the best step so far, refitted to its codes.
_REFITS = 2
_TINY = 1e-30
# Weights of columns are at least this share of their mean, so that a column without input still has a value.
_LEAST_WEIGHT = 1e-3


def checked_matrix(matrix: Tensor, scheme: Scheme, name: str = "the matrix") -> Tensor:
    """A matrix in float32 that a scheme can hold.

    A group of a matrix may be so small beside the others that it becomes zero; the largest group may not.

    Args:
        matrix: ``(rows, columns)``, any float type.
        scheme: scheme to be used.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: the largest entry is too large or too small for float16 scales.
        DTypeError: no tensor, or elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: another number of axes than two, or an empty axis.
    """
    if not isinstance(matrix, Tensor):
        raise DTypeError(f"{name} must be a torch tensor, got {kind_of(matrix)}")
    if not isinstance(scheme, Scheme):
        raise ArgumentError(f"the scheme of {name} must be a Scheme, such as Scheme(4), got {kind_of(scheme)}")
    require_matrix(matrix, name)
    matrix = promoted(detached(matrix), name)
    require_finite(matrix, name)
    largest = float(matrix.abs().max())
    step = largest / scheme.largest_code
    if step > _LARGEST_SCALE / 4 or 0.0 < step < _SMALLEST_SCALE:
        kind = "large" if step > 1.0 else "small"
        raise ArgumentError(
            f"the largest entry of {name} is {largest:.3g}, too {kind} for float16 scales at {scheme.bits} bits; "
            "multiply the matrix by a number that brings it near 1, and its product by the inverse"
        )
    return matrix.to(torch.float32)


def group_grid(values: Tensor, scheme: Scheme, column_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row of values, which are one group: float16 ``(m,)`` and uint8 ``(m,)``.

    Args:
        values: float32 ``(m, n)``, finite.
        scheme: bits and symmetry; the zero points are ``2**(bits - 1)`` if it is symmetric.
        column_weights: ``(n,)`` or ``(m, n)``, nonnegative weights of the squared errors.

    Example:
        >>> scales, zeros = group_grid(torch.tensor([[-1.0, 0.0, 1.0, 2.0]]), Scheme(2))
        >>> scales, zeros
        (tensor([1.], dtype=torch.float16), tensor([1], dtype=torch.uint8))
    """
    largest = values.abs().amax(dim=1, keepdim=True)
    is_zero = largest == 0
    unit = values / largest.masked_fill_(is_zero, 1.0)
    weights = _positive(torch.ones_like(unit[:1]) if column_weights is None else column_weights)
    weighted = unit * weights
    low, high = unit.amin(dim=1, keepdim=True).clamp_(max=0.0), unit.amax(dim=1, keepdim=True).clamp_(min=0.0)
    top, middle = float(scheme.largest_code), float(scheme.middle_code)
    if scheme.symmetric:
        widest = torch.maximum(high / max(middle - 1.0, 1.0), -low / middle).masked_fill_(is_zero, 1.0)
        zeros = torch.full_like(low, middle)
    else:
        widest = ((high - low) / top).masked_fill_(is_zero, 1.0)
        zeros = (-low / widest).round_()

    def refitted(step: Tensor) -> tuple[Tensor, Tensor]:
        """With the codes of a step: the decrease of the squared error by the best scale, and that scale."""
        code = torch.addcmul(zeros, unit, 1 / step).round_().clamp_(0.0, top).sub_(zeros)
        product = torch.linalg.vecdot(weighted, code)[:, None]
        square = torch.linalg.vecdot(code.square_(), weights)[:, None].clamp_(min=_TINY)
        # Where all codes are zero there is no best scale.
        return product.square() / square, torch.where(product > 0, product / square, step)

    gain, scale = refitted(widest)
    for factor in (*_STEPS[scheme.bits], *[None] * _REFITS):
        other_gain, other = refitted(scale if factor is None else widest * factor)
        better = other_gain > gain
        gain, scale = torch.where(better, other_gain, gain), torch.where(better, other, scale)
    scale = (scale * largest).clamp_(_LEAST_STEP, _LARGEST_SCALE).masked_fill_(is_zero, 1.0)
    return scale[:, 0].to(torch.float16), zeros[:, 0].to(torch.uint8)


def _positive(weights: Tensor) -> Tensor:
    """Weights ``(m, n)`` with a mean of 1 in each row and none near 0; equal where all are zero."""
    weights = weights.float().reshape(-1, weights.shape[-1])
    mean = weights.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, weights / mean.clamp(min=_TINY), 1.0).clamp_(min=_LEAST_WEIGHT)


def grids(matrix: Tensor, scheme: Scheme, column_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zero points of all groups of a matrix: float16 and uint8 ``(rows, groups)``.

    Args:
        matrix: ``(rows, columns)``, float32, finite.
        scheme: bits, group and symmetry.
        column_weights: ``(columns,)``, nonnegative weights of the squared errors.

    Raises:
        ShapeError: another number of weights than columns.

    Example:
        >>> scales, zeros = grids(torch.randn(5, 100), Scheme(4, group=32))
        >>> scales.shape
        torch.Size([5, 4])
    """
    columns = matrix.shape[1]
    if column_weights is not None and tuple(column_weights.shape) != (columns,):
        raise ShapeError(f"column weights must have shape ({columns},), got {tuple(column_weights.shape)}")
    pieces = []
    for first in range(0, columns, scheme.group):
        part = slice(first, first + scheme.group)
        pieces.append(group_grid(matrix[:, part], scheme, None if column_weights is None else column_weights[part]))
    scales, zeros = (torch.stack(numbers, dim=1) for numbers in zip(*pieces, strict=True))
    return scales, zeros
