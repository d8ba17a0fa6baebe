"""Compiled kernel: the tiled sweep as the custom operator ``mpochain::sweep`` for torch.compile.

A compiled graph contains the sweep as one operator with a dynamic batch size. Its fake implementation computes the
shape of the output from the sizes of the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype, without_autocast
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.kernels.tiled import sweep_backward, sweep_forward
from mpochain.execution.program import Program, Steps
from mpochain.planning.kernel_models import TiledModel

__all__ = ["Compiled", "packed", "unpacked"]

# Number of integers per step.
_SIZES = 5


def packed(steps: Steps) -> list[int]:
    """The sizes of all steps as a list of integers, which is an argument of an operator."""
    return [size for step in steps for size in step]


def unpacked(sizes: Sequence[int]) -> Steps:
    """The inverse of :func:`packed`."""
    return tuple(
        (sizes[k], sizes[k + 1], sizes[k + 2], sizes[k + 3], sizes[k + 4]) for k in range(0, len(sizes), _SIZES)
    )


@torch.library.custom_op("mpochain::sweep", mutates_args=())
def _sweep(x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> Tensor:
    return sweep_forward(x.contiguous(), matrices, unpacked(sizes), tile)


@_sweep.register_fake
def _(x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> Tensor:
    kept, _, after, before, _ = sizes[-_SIZES:]
    return x.new_empty(x.shape[0], before * kept * after)


@torch.library.custom_op("mpochain::sweep_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, matrices: list[Tensor], sizes: list[int], tile: int) -> list[Tensor]:
    with without_autocast(x):
        grad_x, grads = sweep_backward(grad, x.contiguous(), matrices, unpacked(sizes), tile, needs_x=True)
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


class Compiled(TiledModel, Kernel):
    """The sweep as one operator in a compiled graph."""

    name = "compiled"
    graphs = ("compiled",)

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Call the operator, in the dtype that autocast gives products."""
        dtype = autocast_dtype(x)
        if dtype is not None:
            # Autocast does not cast the arguments of custom operators.
            x, operands = x.to(dtype), [matrix.to(dtype) for matrix in operands]
        return torch.ops.mpochain.sweep(x, list(operands), packed(program.steps), program.tile)
