"""Product with a matrix in interpolative form: two products, then one look-up that puts outputs in their places."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.tracing import is_traced
from mpochain.nn.ordering import reordered

__all__ = ["in_places", "interpolative_product", "product_in_blocks"]

# Rows whose outputs are computed and put in their places together, and rows transposed together.
_BLOCK, _TRANSPOSED = 512, 128
# Rows from which writing into one tensor is faster than concatenating, for types of two bytes and for others.
_LEAST_ROWS_OF_TWO_BYTES, _LEAST_ROWS = 32, 512


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


def product_in_blocks(
    x: Tensor,
    rows: Callable[[Tensor], Tensor],
    coefficients: Callable[[Tensor], Tensor],
    place: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    """The product with two functions in place of matrices, ``(n, in)`` to ``(n, out)``; without derivatives.

    Args:
        x: the rows of the input.
        rows: multiplies with the stored rows, transposed.
        coefficients: multiplies with the coefficients, transposed.
        place: see :func:`interpolative_product`.
        bias: added to the outputs.
    """

    def outputs(part: Tensor) -> Tensor:
        kept = rows(part)
        return in_places([kept, coefficients(kept)], place, bias)

    if x.shape[0] <= _BLOCK:
        return outputs(x)
    first = outputs(x[:_BLOCK])
    y = first.new_empty(x.shape[0], first.shape[1])
    y[:_BLOCK] = first
    for start in range(_BLOCK, x.shape[0], _BLOCK):
        y[start : start + _BLOCK] = outputs(x[start : start + _BLOCK])
    return y


def _may_write(x: Tensor, rows: Tensor, coefficients: Tensor, bias: Tensor | None) -> bool:
    """Whether writing into given memory pays and is possible: no derivatives, no graph, plain tensors of one type."""
    # A mode, such as fast_products(), intercepts F.linear alone.
    if is_traced() or x.device.type != "cpu" or torch._C._len_torch_function_stack():
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
    # On a CPU torch looks up columns of two-byte entries one by one, but rows of any type at the speed of memory.
    return x.dtype.itemsize == 2


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
