"""Metric of the outputs of each block: how much an error in each direction changes the loss, to second order.

With ``g`` the gradient of the loss with respect to a block's output, an error ``e`` of the output costs about
``e^T E[g g^T] e / 2``. Gradients pass backwards block by block, and each block is computed again from its input, so
memory holds the graph of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.calls import BlockCall
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.moments import run_batch
from mpochain.linalg import cholesky
from mpochain.surgery.masks import arguments_of

__all__ = ["metric_factors"]

# Rows per feature of the output, after which no more batches are read.
_ROWS_PER_FEATURE = 16
# This multiple of the mean of the diagonal is added to it, for directions with few gradients in the sample.
_DAMPING = 0.1


def metric_factors(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batches: Sequence[tuple[Any, Sequence[BlockCall]]],
    loss: Callable[[Any], Tensor] | DefaultLoss,
) -> list[Tensor | None]:
    """Factor ``L (features, features)`` of the metric ``L L^T`` of each block's outputs, whose mean diagonal is 1.

    Args:
        model: the dense model, in evaluation mode; its parameters do not require gradients.
        blocks: blocks in the order of their calls.
        batches: batches with the calls of the blocks.
        loss: function from the model's output to a scalar summed over tokens.

    Returns:
        One factor per block; None for a block that no gradient reaches.
    """
    sums: list[Tensor | None] = [None] * len(blocks)
    scales = [0.0] * len(blocks)
    rows = 0
    for batch, calls in batches:
        inputs, gradient = _tail(model, blocks, batch, calls, loss)
        if gradient is None:
            continue
        for number in range(len(blocks) - 1, -1, -1):
            kept = gradient.reshape(-1, gradient.shape[-1]).float()
            if not scales[number]:
                scales[number] = float(kept.abs().amax()) or 0.0
            if scales[number]:
                kept = kept / scales[number]
                total = sums[number]
                sums[number] = kept.T @ kept if total is None else total.addmm_(kept.T, kept)
            if number:
                gradient = _backward(blocks[number], calls[number], inputs[number], gradient)
        rows += gradient.numel() // gradient.shape[-1]
        if rows >= _ROWS_PER_FEATURE * gradient.shape[-1]:
            break
    return [None if total is None else _factor(total) for total in sums]


def _tail(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batch: Any,
    calls: Sequence[BlockCall],
    loss: Callable[[Any], Tensor] | DefaultLoss,
) -> tuple[list[Tensor], Tensor | None]:
    """The inputs of all blocks, and the gradient with respect to the last one's output; None if none reaches it."""
    inputs = [calls[0].hidden]
    added: list[Tensor] = []

    def after(block: nn.Module, _: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if block is not blocks[-1]:
            inputs.append(states.detach().clone())
            return output
        # A part of the graph that is no leaf, since the model may change the output in place.
        added.append(torch.zeros_like(states).requires_grad_(True))
        states = states + added[0]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hooks = [block.register_forward_hook(after) for block in blocks]
    try:
        with torch.enable_grad():
            if isinstance(loss, DefaultLoss):
                loss.expect(arguments_of(model, batch), calls[0].masks)
            value = loss(run_batch(model, batch))
            if value.requires_grad:
                value.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, added[0].grad


def _backward(block: nn.Module, call: BlockCall, hidden: Tensor, gradient: Tensor) -> Tensor:
    """Gradient with respect to the input of a block, from that with respect to its output."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_(True)
        (result,) = torch.autograd.grad(call.run(block, hidden), hidden, gradient, allow_unused=True)
    return torch.zeros_like(hidden) if result is None else result


def _factor(total: Tensor) -> Tensor | None:
    total = total.double()
    mean = float(total.diagonal().mean())
    if not (0 < mean < float("inf")):
        return None
    total /= mean * (1 + _DAMPING)
    total.diagonal().add_(_DAMPING / (1 + _DAMPING))
    return cholesky(total).float()
