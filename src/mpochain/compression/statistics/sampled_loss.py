"""Cross-entropy to labels drawn by the model, whose gradients give the Fisher information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpochain.errors import DTypeError, NonFiniteError
from mpochain.surgery.calls import logits_of

__all__ = ["SampledLoss"]

_ROWS = 64  # rows whose labels are drawn at a time; a draw takes two arrays of the size of its probabilities


class SampledLoss:
    """Cross-entropy, summed, to labels drawn from the model's predictions; its gradients give the Fisher information.

    True labels would give the empirical Fisher information, which vanishes where the model fits its data; drawn labels
    need no labelled data. Source: K-FAC, arXiv 1503.05671, section 2.

    Args:
        seed: of the draws.

    Example:
        >>> logits = torch.zeros(2, 3, 5)
        >>> round(SampledLoss(seed=0)(logits).item() / 6, 4)  # ln 5 for each of the six
        1.6094
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, output: Any) -> Tensor:
        """The loss of a model's output: logits, or an output with ``.logits`` or with logits as its first item.

        Raises:
            DTypeError: an output without logits.
            NonFiniteError: logits with NaN or infinite probabilities.
        """
        try:
            logits = logits_of(output)
        except DTypeError as error:
            raise DTypeError(f"{error}; give loss=") from None
        drawn: Any = _Drawn  # a Function has no types
        value: Tensor = drawn.apply(logits.reshape(-1, logits.shape[-1]), self._generator)
        return value


class _Drawn(torch.autograd.Function):
    """Cross-entropy to drawn labels that keeps one array of the size of the logits, where autograd keeps four."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, generator: torch.Generator) -> Tensor:
        gradient = torch.empty_like(logits, dtype=torch.float32)
        total = gradient.new_zeros(())
        for rows, part in zip(logits.split(_ROWS), gradient.split(_ROWS), strict=True):
            torch.softmax(rows.float(), -1, out=part)
            if not part.isfinite().all():
                raise NonFiniteError("the model predicts NaN; check its weights and the data, or run it in float32")
            drawn = torch.multinomial(part.cpu(), 1, generator=generator).to(logits.device)
            chosen = part.gather(1, drawn)
            # Gradient of cross-entropy with respect to the logits: the probabilities, less 1 at the label.
            part.scatter_add_(1, drawn, torch.full_like(chosen, -1.0))
            total -= chosen.log().sum()
        ctx.gradient, ctx.dtype = gradient, logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad).to(ctx.dtype), None
