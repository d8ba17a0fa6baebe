"""The sweep in torch: tile by tile over the rows, with a backward pass that keeps only the input and the matrices.

Autograd through the steps of a schedule would keep every intermediate state of the whole batch, many times larger than
input and output, and would build a ``(rows, K, C)`` gradient for each broadcast matrix. Here a tile's states live only
while the tile is worked on, stay in cache, and are computed once more in the backward pass; each core's gradient is one
matrix product per tile.

Shape letters as in :mod:`mpochain.planning.schedule`: a step takes a state ``(P, C, A)`` and a matrix ``(K, C)`` to
``(P, K, A)``, where ``P`` is rows times ``before`` and ``A`` is ``after``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mpochain.execution.autocast import autocast_dtype, without_autocast
from mpochain.planning import Schedule

__all__ = ["Steps", "folds", "run_sweep", "steps_of", "sweep_backward", "sweep_forward"]

# (kept K, summed C, after A, before) of every step; plain integers, so that they can be an operator's argument.
Steps = tuple[tuple[int, int, int, int], ...]


def steps_of(schedule: Schedule) -> Steps:
    """The sizes of a schedule's sweep."""
    return tuple((step.kept, step.summed, step.after, step.before) for step in schedule.sweeps)


def folds(kept: int, summed: int, after: int, count: int) -> bool:
    """Whether ``count`` products ``(K, C) @ (C, A)`` are faster as one, at the price of moving states there and back.

    A narrow product takes about as long as one of 16 columns: 0.29 ns for each entry of the matrix. As one large
    product it takes what its arithmetic takes, 1.4 ns for each element that is moved, and 25 µs of calls. The constants
    were fitted to some 80 shapes; see ``docs/decisions.md``.
    """
    if not 1 < after < 16:
        return False
    entries = kept * summed
    return entries * (0.29 - 0.0105 * after) > 1.4 * after * (kept + summed) + 25_000 / max(count, 1)


def _product(matrix: Tensor, state: Tensor, out: Tensor | None, beta: int = 0) -> Tensor:
    """``matrix (K, C)`` on ``state (P, C, A)``: ``(P, K, A)``, into ``out`` if given, added to it if ``beta`` is 1."""
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
    elif folds(k, c, a, p):
        folded = torch.mm(state.transpose(1, 2).reshape(p * a, c), matrix.t()).view(p, a, k).transpose(1, 2)
        if out is None:
            return folded.contiguous()
        out.add_(folded) if beta else out.copy_(folded)
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
        for matrix, (_, c, a, p) in zip(matrices, steps, strict=True):
            # The plain cases first and without further calls: on few rows, calls are what a sweep costs.
            if a == 1:
                state = F.linear(state.view(-1, c), matrix)
            elif rows * p == 1:
                state = torch.mm(matrix, state.view(c, a))
            else:
                state = _product(matrix, state.view(rows * p, c, a), None)
        return state.view(rows, -1) if rows else x.new_empty(0, steps[-1][0] * steps[-1][2] * steps[-1][3])
    kept, _, after, before = steps[-1]
    y = x.new_empty(rows, before * kept * after) if onto is None else onto
    last = len(steps) - 1
    for start in range(0, rows, tile):
        state, part = x[start : start + tile], y[start : start + tile]
        n = state.shape[0]
        for number, (matrix, (k, c, a, p)) in enumerate(zip(matrices, steps, strict=True)):
            target = part.view(n * p, k, a) if number == last else None
            state = _product(matrix, state.view(n * p, c, a), target, 0 if onto is None else 1)
    return y


def sweep_backward(
    grad: Tensor, x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, needs_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of the input and of every matrix, given that of the output.

    Args:
        grad: ``(rows, out)``.
        x: the input of the forward pass, contiguous.
        matrices: as in the forward pass.
        steps: as in the forward pass.
        tile: as in the forward pass.
        needs_x: whether the gradient of the input is wanted.
    """
    rows = x.shape[0]
    grad_x = torch.empty_like(x) if needs_x else None
    # Short floats lose digits when thousands of tiles add up.
    accumulate = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    totals = [torch.zeros(matrix.shape, dtype=accumulate, device=matrix.device) for matrix in matrices]
    for start in range(0, rows, tile):
        states = [x[start : start + tile]]
        n = states[0].shape[0]
        for matrix, (_, c, a, p) in zip(matrices[:-1], steps[:-1], strict=True):
            states.append(_product(matrix, states[-1].view(n * p, c, a), None))
        flow = grad[start : start + tile]
        for number in range(len(steps) - 1, -1, -1):
            k, c, a, p = steps[number]
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
                flow = _product(matrices[number].t(), above, target)
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
        # Backward may be called where autocast is on, which the forward pass has settled already.
        with without_autocast(x):
            grad_x, grads = sweep_backward(grad, x, matrices, ctx.steps, ctx.tile, ctx.needs_input_grad[0])
        return grad_x, None, None, *grads


def run_sweep(x: Tensor, matrices: Sequence[Tensor], steps: Steps, tile: int, onto: Tensor | None = None) -> Tensor:
    """``x (rows, in)`` to ``(rows, out)``, differentiable once, under autocast as a matrix product would be.

    Added in place to ``onto``, which is then returned, if that can be done without a gradient or a cast.
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
