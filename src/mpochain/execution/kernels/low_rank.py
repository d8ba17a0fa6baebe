"""Low-rank and interpolative products fused by Triton, as the custom operator ``mpochain::low_rank``.

The product of rows with a matrix ``left @ right`` of rank ``r``, outputs in their places and bias included. For many
rows, one kernel computes both products, and the ``r`` numbers per row between them stay on the chip. For few rows, as
in decoding, time is that of reading the factors: each product is one launch that is split over all multiprocessors.

Not measured on a GPU yet. Values and gradients are tested in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mpochain.errors import ArgumentError, ShapeError
from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.kernels.device import INTERPRETED, multiprocessors, precision, runs_triton

__all__ = ["low_rank_product", "takes_low_rank"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Largest block of rank whose sums and factors stay on the chip, in bytes: 256 in bfloat16, 128 in float32. Compiled for
# sm_90, blocks of 64 rows then fit into the registers; with twice the rank they do not in float32.
_RANK_BYTES = 512
# Smallest side of a block of a product that tensor cores compute.
_SIDE = 16
# Largest number of blocks of the sum that one part of a product for few rows reads alone.
_MOST_PARTS = 32


@dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks of one call.

    Attributes:
        fused: whether one kernel computes both products; otherwise each is one launch.
        rows: rows of a block.
        rank: rank of a block, at least the rank if fused.
        side: entries of the in or out axis of a block.
        parts: number of parts of the first sum, for few rows.
    """

    fused: bool
    rows: int
    rank: int
    side: int
    parts: int = 1


def blocks_for(rows: int, size_in: int, rank: int, element_bytes: int, processors: int) -> Blocks:
    """The blocks for a call, from its sizes and the number of multiprocessors.

    One kernel computes both products if the rank fits into one block and there are rows for half of all
    multiprocessors, in blocks of 16 rows at least.

    Example:
        >>> blocks_for(4096, 4096, 200, 2, processors=132).fused, blocks_for(8, 4096, 200, 2, processors=132).parts
        (True, 11)
    """
    whole_rank = max(_power(rank), _SIDE)
    fitting = [size for size in (64, 32, 16) if 2 * -(-rows // size) >= processors]
    if whole_rank * element_bytes <= _RANK_BYTES and fitting:
        return Blocks(True, fitting[0], whole_rank, 32)
    row_blocks, rank_blocks = -(-rows // _SIDE), -(-rank // _SIDE)
    parts = min(-(-processors // (row_blocks * rank_blocks)), -(-size_in // 64), _MOST_PARTS)
    return Blocks(False, _SIDE, _SIDE, 64, max(parts, 1))


def _power(size: int) -> int:
    """The smallest power of two that is at least the size."""
    return 1 << max(size - 1, 0).bit_length()


def takes_low_rank(x: Tensor, rows: Tensor, coefficients: Tensor) -> bool:
    """Whether :func:`low_rank_product` runs for these tensors: plain ones of one float type, where Triton runs.

    Example:
        >>> takes_low_rank(torch.ones(2, 8, dtype=torch.int64), torch.ones(3, 8), torch.ones(5, 3))
        False
    """
    if not all(type(tensor) in (Tensor, Parameter) for tensor in (x, rows, coefficients)):
        return False  # shards and the like
    same = x.device == rows.device == coefficients.device and x.dtype == rows.dtype == coefficients.dtype
    return same and x.dtype in _DTYPES and runs_triton(x.device.type)


def low_rank_product(
    x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``x (..., in)`` times a matrix of low rank, transposed: ``(..., out)``; differentiable once.

    Args:
        x: the input.
        rows: right factor ``(rank, in)``.
        coefficients: left factor ``(out, rank)``; with ``place``, the part ``(out - rank, rank)`` of it that is below
            an identity.
        place: int32 ``(out,)``: output ``j`` is column ``place[j]`` of ``[x rows^T, x rows^T coefficients^T]``. Without
            it, the output is ``x rows^T coefficients^T``.
        bias: ``(out,)``.

    Raises:
        ArgumentError: Triton does not run on the device of ``x``, or the tensors have several element types.
        ShapeError: shapes that do not match.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, rows, coefficients = x.to(dtype), rows.to(dtype), coefficients.to(dtype)
    if not takes_low_rank(x, rows, coefficients):
        raise ArgumentError(
            f"low_rank_product needs Triton and float tensors of one type on a CUDA device, got {x.dtype}, "
            f"{rows.dtype} and {coefficients.dtype} on {x.device}; use the products of torch"
        )
    rank, size_in = rows.shape
    out = coefficients.shape[0] if place is None else place.shape[0]
    expected = (out if place is None else out - rank, rank)
    if not x.ndim or x.shape[-1] != size_in or tuple(coefficients.shape) != expected:
        raise ShapeError(
            f"low_rank_product got x {tuple(x.shape)}, rows {tuple(rows.shape)}, coefficients "
            f"{tuple(coefficients.shape)} and {out} outputs; expected x (..., {size_in}) and coefficients {expected}"
        )
    # Like F.linear, in the type of the product also under autocast.
    bias = None if bias is None else bias.to(x.dtype)
    y = torch.ops.mpochain.low_rank(x.reshape(-1, size_in), rows, coefficients, place, bias)
    return y.reshape(*x.shape[:-1], out)


@torch.library.custom_op("mpochain::low_rank", mutates_args=())
def _low_rank(x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None, bias: Tensor | None) -> Tensor:
    out = coefficients.shape[0] if place is None else place.shape[0]
    return _products(x, (rows.t(), None), (coefficients, place), rows.shape[0], out, bias, keeps=False)[0]


@_low_rank.register_fake
def _(x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], coefficients.shape[0] if place is None else place.shape[0])


@torch.library.custom_op("mpochain::low_rank_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rank, size_in = rows.shape
    # The gradient with respect to the input passes the factors in the other order.
    left = (coefficients, place)
    grad_x, grad_middle = _products(grad, left, (rows.t(), None), rank, size_in, None, keeps=True)
    assert grad_middle is not None
    # Recomputed: one product, where saving it would take memory for every layer of a model.
    middle = x @ rows.t()
    if place is not None:
        position = torch.empty_like(place, dtype=torch.long)
        position[place.long()] = torch.arange(place.shape[0], device=place.device)
        grad = grad.index_select(1, position[rank:])
    return grad_x, grad_middle.t() @ x, grad.t() @ middle


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, rows: Tensor, coefficients: Tensor, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), rows.new_empty(rows.shape), coefficients.new_empty(coefficients.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
    x, rows, coefficients, place, bias = inputs
    ctx.save_for_backward(x, rows, coefficients, place)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor | None]:
    x, rows, coefficients, place = ctx.saved_tensors
    grad_x, grad_rows, grad_coefficients = torch.ops.mpochain.low_rank_backward(grad, x, rows, coefficients, place)
    return grad_x, grad_rows, grad_coefficients, None, grad.sum(0) if ctx.has_bias else None


_low_rank.register_autograd(_differentiate, setup_context=_setup)


# A factor (size, rank) of any strides, and the places of its rows, or None.
_Factor = tuple[Tensor, Tensor | None]


def _products(
    x: Tensor, first: _Factor, second: _Factor, rank: int, size_out: int, bias: Tensor | None, *, keeps: bool
) -> tuple[Tensor, Tensor | None]:
    """``x (rows, in)`` by two factors; also the product with the first one ``(rows, rank)``, if it is to be kept."""
    import triton.language as tl

    from mpochain.execution.kernels.triton_functions import one_product, two_products

    rows, size_in = x.shape
    y = x.new_empty(rows, size_out)
    if not rows:
        return y, x.new_empty(0, rank) if keeps else None
    blocks = blocks_for(rows, size_in, rank, x.element_size(), multiprocessors(x.device))
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    (weight_a, place_a), (weight_b, place_b) = first, second
    constants = {
        "ACCUMULATE": tl.float64 if accumulate == torch.float64 else tl.float32,
        "PRECISION": precision(x.dtype),
        "WIDENS": INTERPRETED and x.dtype == torch.bfloat16,
        "ROWS": blocks.rows,
    }
    row_blocks = -(-rows // blocks.rows)
    if blocks.fused:
        middle = x.new_empty(rows, rank) if keeps else None
        two_products[(row_blocks,)](
            *(x, weight_a, weight_b, place_a if place_b is None else place_b, bias, y, middle),
            *(rows, *x.stride(), *weight_a.stride(), *weight_b.stride()),
            SIZE_IN=size_in,
            RANK=rank,
            SIZE_OUT=size_out,
            FIRST_PLACED=place_a is not None,
            SECOND_PLACED=place_b is not None,
            HAS_BIAS=bias is not None,
            STORES_MIDDLE=keeps,
            IN=blocks.side,
            MIDDLE=blocks.rank,
            OUT=blocks.side,
            num_warps=8 if blocks.rows * blocks.rank > 4096 else 4,
            **constants,
        )
        return y, middle
    parts = x.new_empty(blocks.parts, rows, rank, dtype=accumulate)
    one_product[(row_blocks, -(-rank // blocks.rank), blocks.parts)](
        *(x, weight_a, place_a, None, parts, rows, 0, *x.stride(), *weight_a.stride()),
        SIZE_SUMMED=size_in,
        SIZE_KEPT=rank,
        SUMS_RANK=False,
        PLACED=place_a is not None,
        HAS_BIAS=False,
        PARTS=1,
        NEXT_PARTS=blocks.parts,
        SUMMED=blocks.side,
        KEPT=blocks.rank,
        **constants,
    )
    one_product[(row_blocks, -(-size_out // blocks.side), 1)](
        *(parts, weight_b, place_b, bias, y, rows, *parts.stride(), *weight_b.stride()),
        SIZE_SUMMED=rank,
        SIZE_KEPT=size_out,
        SUMS_RANK=True,
        PLACED=place_b is not None,
        HAS_BIAS=bias is not None,
        PARTS=blocks.parts,
        NEXT_PARTS=1,
        SUMMED=blocks.rank,
        KEPT=blocks.side,
        **constants,
    )
    return y, parts.sum(0).to(x.dtype) if keeps else None
