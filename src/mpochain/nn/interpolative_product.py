"""Product with a matrix in interpolative form: two products, then one look-up that puts outputs in their places."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from mpochain.decomposition import interpolative_parameters
from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.tracing import is_traced
from mpochain.nn.ordering import reordered

__all__ = ["Form", "form_to_keep", "in_places", "interpolative_product"]

# What a layer keeps between calls: its dense matrix, its left factor, or its coefficients stored by columns.
Form = Literal["matrix", "left", "coefficients"]

# Rows whose outputs are computed and put in their places together, and rows transposed together: a few hundred kB.
_BLOCK, _TRANSPOSED = 512, 128
# Rows from which writing into one tensor is faster than concatenating, for types of two bytes and for others.
_LEAST_ROWS_OF_TWO_BYTES, _LEAST_ROWS = 32, 512

# Multiply-adds per row that the two products must save to be faster than the dense one: calls and look-ups take time.
_LEAST_SAVED = 1 << 15
# A matrix with this multiple of its columns as rows is read faster by columns, as long stretches of memory.
_TALL = 1.5
# In types of two bytes, whose look-ups take longer, two plain factors are faster than the dense matrix if they need at
# most this share of its multiply-adds and save at least so many.
_TWO_FACTORS, _LEAST_SAVED_BY_FACTORS = 0.75, 1 << 16


def interpolative_product(
    x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """``x W^T + bias`` for ``W = [rows; coefficients rows][place]``: ``(..., in)`` to ``(..., out)``; differentiable.

    Costs the multiply-adds of its two products, which calls without gradients write into parts of one tensor. Measured
    against products with a left factor that holds the identity: docs/decisions/0074.

    Args:
        x: input of any batch shape.
        rows: ``(r, in)``.
        coefficients: ``(out - r, r)``.
        place: integers ``(out,)``: output ``j`` is column ``place[j]`` of ``[x rows^T, x rows^T coefficients^T]``;
            None for the identity.
        bias: ``(out,)``.

    Example:
        >>> rows, coefficients = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]])
        >>> interpolative_product(torch.tensor([[3.0, 4.0]]), rows, coefficients, torch.tensor([1, 0]))
        tensor([[6., 3.]])
    """
    if _may_write(x, rows, coefficients, bias):
        return _into_one(x, rows, coefficients, place, bias)
    # Look-ups in tensors of three axes take longer.
    flat = x.reshape(-1, rows.shape[1])
    kept = F.linear(flat, rows)
    size_out = rows.shape[0] + coefficients.shape[0]
    return in_places([kept, F.linear(kept, coefficients)], place, bias).reshape(*x.shape[:-1], size_out)


def form_to_keep(out: int, in_: int, rank: int, itemsize: int, device: str) -> Form | None:
    """What to keep for an ``(out, in_)`` matrix of a rank, so that calls take less time; None where nothing does.

    Args:
        out: number of outputs.
        in_: number of inputs.
        rank: number of stored rows.
        itemsize: bytes of an entry.
        device: kind of the device.

    Example:
        >>> form_to_keep(1536, 576, 272, 4, "cpu"), form_to_keep(576, 576, 300, 4, "cpu")
        ('coefficients', None)
    """
    dense = out * in_
    if itemsize == 2:
        factors = rank * (out + in_)
        return "left" if factors <= min(_TWO_FACTORS * dense, dense - _LEAST_SAVED_BY_FACTORS) else "matrix"
    if dense - interpolative_parameters(out, in_, rank) <= _LEAST_SAVED:
        return "matrix"
    return "coefficients" if out - rank >= _TALL * rank and device == "cpu" else None


def in_places(outputs: list[Tensor], place: Tensor | None, bias: Tensor | None) -> Tensor:
    """Outputs side by side ``(..., out)``, in their places, and the bias.

    Args:
        outputs: parts ``(..., r)`` and ``(..., out - r)`` of the outputs, or one part with all.
        place: see :func:`interpolative_product`.
        bias: see :func:`interpolative_product`.
    """
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    if place is not None:
        y = reordered(y, place)
    # Under autocast a bias of a wider dtype would promote the output; nn.Linear does not.
    return y if bias is None else y + bias.to(y.dtype)


def _may_write(x: Tensor, rows: Tensor, coefficients: Tensor, bias: Tensor | None) -> bool:
    """Whether writing into given memory pays and is possible: no derivatives, no graph, plain tensors of one type."""
    if is_traced():
        return False
    least = _LEAST_ROWS_OF_TWO_BYTES if _by_rows(x) else _LEAST_ROWS
    if x.numel() < least * rows.shape[1]:
        return False
    if forward_ad._current_level >= 0 or autocast_dtype(x) is not None:
        return False
    tensors = (x, rows, coefficients) if bias is None else (x, rows, coefficients, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(type(tensor) in (Tensor, Parameter) and tensor.dtype == x.dtype for tensor in tensors)


def _by_rows(x: Tensor) -> bool:
    # torch looks up columns of two-byte entries one by one, but rows of any type at the speed of memory.
    return x.dtype.itemsize == 2 and x.device.type == "cpu"


def _into_one(x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None, bias: Tensor | None) -> Tensor:
    """The product, block by block of rows, so that no output is read from memory again for its place."""
    flat = x.reshape(-1, rows.shape[1])
    y = x.new_empty(flat.shape[0], rows.shape[0] + coefficients.shape[0])
    if place is None:
        _multiply(flat, rows, coefficients, y)
    else:
        fill = _fill_by_rows if _by_rows(x) else _fill
        for start in range(0, flat.shape[0], _BLOCK):
            block = slice(start, start + _BLOCK)
            fill(flat[block], rows, coefficients, place, y[block])
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], y.shape[1])


def _multiply(x: Tensor, rows: Tensor, coefficients: Tensor, y: Tensor) -> None:
    """Write both products into ``y``, side by side."""
    kept = y[:, : rows.shape[0]]
    torch.mm(x, rows.t(), out=kept)
    if coefficients.shape[0]:
        torch.mm(kept, coefficients.t(), out=y[:, rows.shape[0] :])


def _fill(x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor, y: Tensor) -> None:
    unordered = torch.empty_like(y)
    _multiply(x, rows, coefficients, unordered)
    torch.index_select(unordered, 1, place, out=y)


def _fill_by_rows(x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor, y: Tensor) -> None:
    unordered = y.new_empty(y.shape[::-1])
    kept = unordered[: len(rows)]
    torch.mm(rows, x.t(), out=kept)
    if len(coefficients):
        torch.mm(coefficients, kept, out=unordered[len(rows) :])
    for start in range(0, len(y), _TRANSPOSED):
        block = slice(start, start + _TRANSPOSED)
        y[block].copy_(unordered[:, block].index_select(0, place).t())
