"""Tiled kernel: a sweep tile by tile over the rows, whose backward pass needs only the input and the matrices.

Autograd through the steps of a schedule would save every intermediate state of the full batch, many times larger than
input and output, and would build a ``(rows, K, C)`` gradient for each broadcast matrix. Here a tile's states live only
while the tile is worked on, stay in cache, and are computed once more in the backward pass; the gradient with respect
to a core is one matrix product per tile.

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
        matrix: broadcast over ``P``.
        state: contiguous.
        least_batched: ``P`` from which the products are batched into one.
        out: written to, if it is not None.
        beta: 1 to add the result to ``out``.
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
    """``x (rows, in)`` to ``(rows, out)``, outside autograd.

    Args:
        x: contiguous rows.
        matrices: one ``(K, C)`` per step.
        steps: their sizes.
        tile: rows worked on at a time.
        onto: contiguous ``(rows, out)`` to add the result to, in place.
    """
    rows = x.shape[0]
    if rows <= tile and onto is None:
        state = x
        for matrix, (_, c, a, p, least) in zip(matrices, steps, strict=True):
            # The plain cases first and without further calls: on few rows, calls are what a sweep costs.
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
        matrices: as in the forward pass.
        steps: as in the forward pass.
        tile: as in the forward pass.
        needs_x: whether the gradient with respect to the input is needed.
    """
    rows = x.shape[0]
    grad_x = torch.empty_like(x) if needs_x else None
    # Short floats lose digits when thousands of tiles add up.
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
            # One product per tile: both with their summed axes joined.
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
        # Backward may be called where autocast is on; the forward pass has cast already.
        with without_autocast(x):
            grad_x, grads = sweep_backward(grad, x, matrices, ctx.steps, ctx.tile, ctx.needs_input_grad[0])
        return grad_x, None, None, *grads


def run_sweep(x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, onto: Tensor | None = None) -> Tensor:
    """``x (rows, in)`` to ``(rows, out)``, differentiable once, under autocast as a matrix product would be.

    The result is added in place to ``onto``, which is then returned, if no gradient is recorded and no cast is needed.
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
    """The sweep in tiles, with a backward pass of its own."""

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """The sweep."""
        return run_sweep(x, operands, program.steps, program.tile)

    def run(
        self,
        program: Program,
        x: Tensor,
        operands: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """With the sum of earlier terms as part of the last products."""
        if program.is_padded:
            return super().run(program, x, operands, bias, onto)
        y = run_sweep(x, operands, program.steps, program.tile, onto)
        if onto is not None:
            return y if y is onto else onto.add_(y)
        return y if bias is None else y + bias.to(y.dtype)

    def bind(
        self, program: Program, operands: Sequence[Tensor], shape: torch.Size, bias: Tensor | None
    ) -> Callable[[Tensor], Tensor] | None:
        """One product per step, of matrices that are transposed or expanded beforehand; for rows of one tile."""
        rows = math.prod(shape[:-1])
        if rows > program.tile:
            return None
        # Product, matrix, whether the matrix stands on the right, and the shape to view the state in before.
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
            # One row: the bias in the shape of the last product is a view, and the sum part of the product.
            k, _, a, p, _ = program.steps[-1]
            with_sum, addend = torch.addmm, bias.view(p, k) if a == 1 else bias.view(k, a)

        def run(x: Tensor) -> Tensor:
            state = x
            for multiply, matrix, right, shape_before in first:
                # reshape, as the input may lie in any order; sizes one by one, as torch reads a tuple 1.3 µs longer.
                state = state.reshape(*shape_before)
                state = multiply(state, matrix) if right else multiply(matrix, state)
            state = state.view(*size)
            if with_sum is not None and addend is not None:
                state = with_sum(addend, state, last) if is_right else with_sum(addend, last, state)
                return state.view(*result)
            state = (product(state, last) if is_right else product(last, state)).view(*result)
            return state if addend is None else state.add_(addend)

        return run
