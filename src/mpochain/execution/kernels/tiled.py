"""Tiled kernel: a sweep over tiles of rows, whose backward pass needs only the input and the matrices.

Autograd through the steps of a schedule would save every intermediate state of the full batch, many times larger than
input and output, and would build a ``(rows, K, C)`` gradient for each broadcast matrix. Here the states of a tile exist
only while it is processed, stay in cache, and are recomputed in the backward pass; the gradient with respect to a core
is one matrix product per tile.

Shape letters as in :mod:`mpochain.planning.schedule`: a step takes a state ``(P, C, A)`` and a matrix ``(K, C)`` to
``(P, K, A)``, where ``P`` is rows times ``before`` and ``A`` is ``after``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mpochain.execution.autocast import autocast_dtype, without_autocast
from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.program import Program, Steps
from mpochain.planning.kernel_models import TiledModel

__all__ = ["Tiled", "run_sweep", "sweep_backward", "sweep_forward"]


def _product(matrix: Tensor, state: Tensor, least_batched: int, out: Tensor | None, beta: int = 0) -> Tensor:
    """``matrix (K, C)`` times ``state (P, C, A)``: ``(P, K, A)``.

    Args:
        matrix: the matrix, broadcast over ``P``.
        state: a contiguous state.
        least_batched: smallest ``P`` for which the products are batched into one.
        out: tensor for the result, or None.
        beta: 1 to add the result to ``out``, 0 to overwrite it.
    """
    p, c, a = state.shape
    k = matrix.shape[0]
    if a == 1:
        flat = state.view(p, c)
        if out is None:
            return torch.mm(flat, matrix.t()).view(p, k, 1)
        out.view(p, k).addmm_(flat, matrix.t(), beta=beta)
    elif p == 1:
        if out is None:
            return torch.mm(matrix, state[0]).unsqueeze(0)
        out[0].addmm_(matrix, state[0], beta=beta)
    elif p >= least_batched:
        product = torch.mm(state.transpose(1, 2).reshape(p * a, c), matrix.t()).view(p, a, k).transpose(1, 2)
        if out is None:
            return product.contiguous()
        out.add_(product) if beta else out.copy_(product)
    else:
        if out is None:
            return torch.bmm(matrix.expand(p, k, c), state)
        out.baddbmm_(matrix.expand(p, k, c), state, beta=beta)
    return out


def sweep_forward(x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, onto: Tensor | None = None) -> Tensor:
    """``x (rows, in)`` to ``(rows, out)``, outside of autograd.

    Args:
        x: contiguous rows.
        matrices: one ``(K, C)`` per step.
        steps: sizes of the steps.
        tile: number of rows processed at a time.
        onto: contiguous ``(rows, out)``, to which the result is added in place.
    """
    rows = x.shape[0]
    if rows <= tile and onto is None:
        state = x
        for matrix, (_, c, a, p, least) in zip(matrices, steps, strict=True):
            # The simple cases come first, without further calls: with few rows, calls dominate the time of a sweep.
            if a == 1:
                state = F.linear(state.view(-1, c), matrix)
            elif rows * p == 1:
                state = torch.mm(matrix, state.view(c, a))
            else:
                state = _product(matrix, state.view(rows * p, c, a), least, None)
        return state.view(rows, -1) if rows else x.new_empty(0, steps[-1][0] * steps[-1][2] * steps[-1][3])
    kept, _, after, before, _ = steps[-1]
    y = x.new_empty(rows, before * kept * after) if onto is None else onto
    last = len(steps) - 1
    for start in range(0, rows, tile):
        state, part = x[start : start + tile], y[start : start + tile]
        n = state.shape[0]
        for number, (matrix, (k, c, a, p, least)) in enumerate(zip(matrices, steps, strict=True)):
            target = part.view(n * p, k, a) if number == last else None
            state = _product(matrix, state.view(n * p, c, a), least, target, 0 if onto is None else 1)
    return y


def sweep_backward(
    grad: Tensor, x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, needs_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients with respect to the input and to every matrix, from the gradient with respect to the output.

    Args:
        grad: the gradient with respect to the output, ``(rows, out)``.
        x: the input of the forward pass, contiguous.
        matrices: see :func:`sweep_forward`.
        steps: see :func:`sweep_forward`.
        tile: see :func:`sweep_forward`.
        needs_x: whether the gradient with respect to the input is needed.
    """
    rows = x.shape[0]
    grad_x = torch.empty_like(x) if needs_x else None
    # Short float types would lose digits in a sum over thousands of tiles.
    accumulate = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    totals = [torch.zeros(matrix.shape, dtype=accumulate, device=matrix.device) for matrix in matrices]
    for start in range(0, rows, tile):
        states = [x[start : start + tile]]
        n = states[0].shape[0]
        for matrix, (_, c, a, p, least) in zip(matrices[:-1], steps[:-1], strict=True):
            states.append(_product(matrix, states[-1].view(n * p, c, a), least, None))
        flow = grad[start : start + tile]
        for number in range(len(steps) - 1, -1, -1):
            k, c, a, p, least = steps[number]
            above, below = flow.reshape(n * p, k, a), states[number].view(n * p, c, a)
            # One product per tile, with the summed axes of both operands joined.
            left = above.transpose(0, 1).reshape(k, -1)
            right = below.transpose(1, 2).reshape(-1, c)
            if accumulate == x.dtype:
                totals[number].addmm_(left, right)
            else:
                totals[number] += torch.mm(left, right)
            if number or grad_x is not None:
                target = grad_x[start : start + tile].view(n * p, c, a) if not number and grad_x is not None else None
                flow = _product(matrices[number].t(), above, least, target)
    return grad_x, [total.to(matrix.dtype) for total, matrix in zip(totals, matrices, strict=True)]


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: Steps, tile: int, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x, *matrices)
        ctx.steps, ctx.tile = steps, tile
        return sweep_forward(x, matrices, steps, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *matrices = ctx.saved_tensors
        # The backward pass may run under autocast, but the forward pass has already cast.
        with without_autocast(x):
            grad_x, grads = sweep_backward(grad, x, matrices, ctx.steps, ctx.tile, ctx.needs_input_grad[0])
        return grad_x, None, None, *grads


def run_sweep(x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, onto: Tensor | None = None) -> Tensor:
    """``x (rows, in)`` to ``(rows, out)``, differentiable once; under autocast, cast like a matrix product.

    If no gradient is recorded and no cast is needed, the result is added in place to ``onto``, which is returned.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        with without_autocast(x):
            return run_sweep(x.to(dtype), [matrix.to(dtype) for matrix in matrices], steps, tile)
    x = x.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or any(matrix.requires_grad for matrix in matrices)):
        return _Sweep.apply(x, steps, tile, *matrices)  # type: ignore[no-untyped-call]
    fits = onto is not None and onto.dtype == x.dtype and onto.is_contiguous()
    return sweep_forward(x, matrices, steps, tile, onto if fits else None)


class Tiled(TiledModel, Kernel):
    """The sweep in tiles, with a custom backward pass."""

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Run the sweep."""
        return run_sweep(x, operands, program.steps, program.tile)

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """See ``Kernel.run``; adds the sum of earlier terms within the last products."""
        if program.is_padded:
            return super().run(program, x, operands, bias, onto)
        y = run_sweep(x, operands, program.steps, program.tile, onto)
        if onto is not None:
            return y if y is onto else onto.add_(y)
        return y if bias is None else y + bias.to(y.dtype)

    def bind(
        self, program: Program, operands: Sequence[Tensor], shape: torch.Size, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor] | None:
        """See ``Kernel.bind``; one product per step, with matrices transposed or expanded in advance; for one tile."""
        rows = math.prod(shape[:-1])
        if rows > program.tile:
            return None
        # For each step: product, matrix, True if the matrix is on the right, and the shape of the state before it.
        steps: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, bool, tuple[int, ...]]] = []
        for matrix, (k, c, a, p, least) in zip(operands, program.steps, strict=True):
            if a == 1:
                steps.append((torch.mm, matrix.t(), True, (rows * p, c)))
            elif rows * p == 1:
                steps.append((torch.mm, matrix, False, (c, a)))
            elif rows * p >= least:
                return None
            else:
                steps.append((torch.bmm, matrix.expand(rows * p, k, c), False, (rows * p, c, a)))
        *first, (product, last, is_right, size) = steps
        result = (*shape[:-1], program.schedule.spec.out_features)
        with_sum, addend = None, bias
        if bias is not None and rows == 1 and product is torch.mm:
            # With one row, the bias is a view in the shape of the last product, which can include the sum.
            k, _, a, p, _ = program.steps[-1]
            with_sum, addend = torch.addmm, bias.view(p, k) if a == 1 else bias.view(k, a)

        def run(x: Tensor) -> Tensor:
            state = x
            for multiply, matrix, right, shape_before in first:
                # reshape, since the input may have any strides; separate sizes, since a tuple takes torch 1.3 µs more.
                state = state.reshape(*shape_before)
                state = multiply(state, matrix) if right else multiply(matrix, state)
            state = state.view(*size)
            if with_sum is not None and addend is not None:
                state = with_sum(addend, state, last) if is_right else with_sum(addend, last, state)
                return state.view(*result)
            state = (product(state, last) if is_right else product(last, state)).view(*result)
            return state if addend is None else state.add_(addend)

        return run
