"""Cross-entropy to labels sampled from the model, whose gradients give the Fisher information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpochain.errors import DTypeError, NonFiniteError
from mpochain.surgery.calls import logits_of

__all__ = ["SampledLoss"]

_ROWS = 64  # rows sampled at a time; sampling takes two more arrays as large as the rows' probabilities


class SampledLoss:
    """Summed cross-entropy to labels sampled from the model's predictions; its gradients give the Fisher information.

    True labels would give the empirical Fisher information, which vanishes where the model fits its data. Sampled
    labels need no labelled data. Source: K-FAC, arXiv 1503.05671, section 2.

    Args:
        seed: seed of the sampling.

    Example:
        >>> logits = torch.zeros(2, 3, 5)
        >>> round(SampledLoss(seed=0)(logits).item() / 6, 4)  # ln 5 for each of the six
        1.6094
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self, output: Any) -> Tensor:
        """Compute the loss of logits, or of an output that has ``.logits`` or logits as its first item.

        Raises:
            DTypeError: the output has no logits.
            NonFiniteError: the predicted probabilities are NaN or infinite.
        """
        try:
            logits = logits_of(output)
        except DTypeError as error:
            raise DTypeError(f"{error}; give loss=") from None
        drawn: Any = _Drawn  # a Function has no types
        value: Tensor = drawn.apply(logits.reshape(-1, logits.shape[-1]), self._generator)
        return value


class _Drawn(torch.autograd.Function):
    """Cross-entropy to sampled labels that keeps one array as large as the logits, where autograd would keep four."""

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
            # Gradient of cross-entropy with respect to the logits: the probabilities, minus 1 at the label.
            part.scatter_add_(1, drawn, torch.full_like(chosen, -1.0))
            total -= chosen.log().sum()
        ctx.gradient, ctx.dtype = gradient, logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad).to(ctx.dtype), None
