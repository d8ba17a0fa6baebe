"""Single training step for measurements of time and memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution import fast_products
from studies.picogpt.model import PicoGPT

__all__ = ["TrainingStep"]


class TrainingStep:
    """Forward, backward and optimiser step as in the training loop, at a learning rate of zero.

    Args:
        model: model whose parameters keep their values.
        tokens: ``(B, T)``, used as inputs and as targets.
        autocast: dtype of the products; None for the dtype of the parameters.
    """

    def __init__(self, model: PicoGPT, tokens: Tensor, autocast: torch.dtype | None = None) -> None:
        self._model, self._tokens, self._autocast = model, tokens, autocast
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def __call__(self) -> None:
        """Run the step."""
        with fast_products(), torch.autocast("cpu", dtype=self._autocast, enabled=self._autocast is not None):
            logits = self._model(self._tokens)
        F.cross_entropy(logits.float().flatten(0, 1), self._tokens.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
