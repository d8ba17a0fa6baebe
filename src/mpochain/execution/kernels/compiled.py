"""The sweep as a registered operator, so that torch.compile keeps it whole: ``mpochain::sweep``.

Its batch is dynamic; its fake kernel gives the shape of the output from the sizes of the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype, without_autocast
from mpochain.execution.kernels.tiled import Steps, sweep_backward, sweep_forward

__all__ = ["compiled_sweep"]


def _unpacked(sizes: Sequence[int]) -> Steps:
    return tuple((sizes[k], sizes[k + 1], sizes[k + 2], sizes[k + 3]) for k in range(0, len(sizes), 4))


@torch.library.custom_op("mpochain::sweep", mutates_args=())
def _sweep(x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> Tensor:
    return sweep_forward(x.contiguous(), matrices, _unpacked(sizes), tile)


@_sweep.register_fake
def _(x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> Tensor:
    kept, _, after, before = sizes[-4:]
    return x.new_empty(x.shape[0], before * kept * after)


@torch.library.custom_op("mpochain::sweep_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> list[Tensor]:
    with without_autocast(x):
        grad_x, grads = sweep_backward(grad, x.contiguous(), matrices, _unpacked(sizes), tile, needs_x=True)
    assert grad_x is not None
    return [grad_x, *grads]


@_backward.register_fake
def _(grad: Tensor, x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> list[Tensor]:
    return [x.new_empty(x.shape), *(torch.empty_like(matrix) for matrix in matrices)]


def _setup(ctx: Any, inputs: tuple[Tensor, list[Tensor], list[int], int], output: Tensor) -> None:
    x, matrices, ctx.sizes, ctx.tile = inputs
    ctx.save_for_backward(x, *matrices)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Tensor], None, None]:
    x, *matrices = ctx.saved_tensors
    grad_x, *grads = torch.ops.mpochain.sweep_backward(grad, x, matrices, ctx.sizes, ctx.tile)
    return grad_x, grads, None, None


_sweep.register_autograd(_differentiate, setup_context=_setup)


def compiled_sweep(x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int) -> Tensor:
    """``x (rows, in)`` to ``(rows, out)`` as one operator in a compiled graph."""
    dtype = autocast_dtype(x)
    if dtype is not None:
        # An operator of our own is not on autocast's list.
        x, matrices = x.to(dtype), [matrix.to(dtype) for matrix in matrices]
    return torch.ops.mpochain.sweep(x, list(matrices), [size for step in steps for size in step], tile)
