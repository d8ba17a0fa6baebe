"""Scales and zero points of groups, by a search for the least squared error.

The values of a group are rounded to ``(code - zero) * scale``. From the range of the values the search tries smaller
steps, which round most values more finely and cut off the largest. For fixed codes the best scale has a closed form, so
a few steps are enough. Squared errors are weighted, if weights of the columns are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.arrays import detached, promoted, require_finite, require_matrix
from mpochain.errors import ArgumentError, ShapeError
from mpochain.quantization.scheme import Scheme

__all__ = ["checked_matrix", "grids", "group_grid"]

# Scales are float16. Between the smallest scale and 2^-24 they would have fewer than 5 significant bits.
_LARGEST_SCALE, _SMALLEST_SCALE, _LEAST_STEP = 65504.0, 2.0**-20, 2.0**-24
# Smallest and largest step tried, relative to the step that covers the range of the values, and their number.
_STEPS = {8: (0.9, 1.01, 5), 4: (0.6, 1.05, 9), 3: (0.5, 1.1, 11), 2: (0.3, 1.2, 13)}
# Attempts from the best step so far, refitted to its codes.
_REFITS = 2
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
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.
        ShapeError: another number of axes than two, or an empty axis.
    """
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
        values: float32 or float64 ``(m, n)``, finite.
        scheme: bits and symmetry; the zero points are ``2**(bits - 1)`` if it is symmetric.
        column_weights: ``(n,)``, nonnegative weights of the squared errors.

    Example:
        >>> scales, zeros = group_grid(torch.tensor([[-1.0, 0.0, 1.0, 2.0]]), Scheme(2))
        >>> scales, zeros
        (tensor([1.], dtype=torch.float16), tensor([1], dtype=torch.uint8))
    """
    largest = values.abs().amax(dim=1, keepdim=True)
    zero_rows = largest == 0
    unit = values / largest.masked_fill(zero_rows, 1.0)
    if column_weights is None:
        weighted, weights = unit, torch.ones(unit.shape[1], dtype=unit.dtype, device=unit.device)
    else:
        weights = column_weights.to(unit)
        mean = weights.mean()
        weights = (weights / mean).clamp_(min=_LEAST_WEIGHT) if bool(mean > 0) else torch.ones_like(weights)
        weighted = unit * weights
    low, high = unit.amin(dim=1, keepdim=True).clamp_(max=0.0), unit.amax(dim=1, keepdim=True).clamp_(min=0.0)
    top = float(scheme.largest_code)
    if scheme.symmetric:
        middle = float(scheme.middle_code)
        zeros = torch.full_like(low, middle)
        widest = torch.maximum(high / max(middle - 1.0, 1.0), -low / middle)
    else:
        widest = (high - low) / top
        widest = widest.masked_fill(zero_rows, 1.0)
        zeros = (-low / widest).round_()
    best_gain = torch.full_like(low, -1.0)
    best_scale, best_zeros = widest.clone(), zeros.clone()

    def attempt(step: Tensor, zeros: Tensor) -> None:
        # With the best scale for its codes q, an attempt lowers the squared error by (x.q)^2 / (q.q).
        q = (unit / step).round_()
        q = torch.clamp(q, -zeros, top - zeros)
        product = (weighted * q).sum(dim=1, keepdim=True)
        squares = q.square_() @ weights[:, None]
        gain = product.clamp(min=0.0).square_() / squares.clamp(min=1e-30)
        better = gain > best_gain
        best_gain.copy_(torch.where(better, gain, best_gain))
        best_scale.copy_(torch.where(better & (squares > 0), product / squares.clamp(min=1e-30), best_scale))
        best_zeros.copy_(torch.where(better, zeros, best_zeros))

    for factor in torch.linspace(*_STEPS[scheme.bits]).tolist():
        attempt(widest * factor, zeros)
    for _ in range(_REFITS):
        attempt(best_scale.clone(), best_zeros.clone())
    scales = (best_scale * largest.masked_fill(zero_rows, 1.0)).clamp_(_LEAST_STEP, _LARGEST_SCALE)
    scales = scales.masked_fill(zero_rows, 1.0)
    return scales[:, 0].to(torch.float16), best_zeros[:, 0].to(torch.uint8)


def grids(matrix: Tensor, scheme: Scheme, column_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zero points of all groups of a matrix: float16 and uint8 ``(rows, groups)``.

    Args:
        matrix: ``(rows, columns)``, as :func:`checked_matrix` returns it.
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
