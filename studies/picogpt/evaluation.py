"""Validation loss and token accuracy on a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import CorpusError

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on a split.

    Attributes:
        loss: mean cross-entropy, nats per token.
        accuracy: fraction of tokens that the model predicts as the most likely.
        tokens: number of predicted tokens.
    """

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(self.loss)


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, *, context: int = 256, batch_size: int = 32) -> Evaluation:
    """Compute loss and accuracy on every token of a split but its first.

    The split is cut into adjacent windows of ``context`` tokens, so each token is predicted once, from the tokens
    before it in its window. The last window may be shorter.

    Args:
        model: maps tokens ``(B, T)`` to logits ``(B, T, V)``.
        tokens: the split, ``(n,)``, integers.
        context: window length.
        batch_size: windows per forward pass; affects the time, not the result.

    Raises:
        CorpusError: the split has fewer than two tokens.
    """
    if tokens.numel() < 2:
        raise CorpusError(f"a split of {tokens.numel()} tokens has nothing to predict; it needs at least 2")
    was_training = model.training
    model.eval()
    count = tokens.numel() - 1
    windows = count // context
    inputs = tokens[: windows * context].view(windows, context)
    targets = tokens[1 : windows * context + 1].view(windows, context)
    batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True)) if windows else []
    if windows * context < count:
        batches.append((tokens[None, windows * context : -1], tokens[None, windows * context + 1 :]))
    loss, correct = 0.0, 0
    for x, y in batches:
        logits = model(x.long()).flatten(0, 1)
        truth = y.long().flatten()
        loss += F.cross_entropy(logits, truth, reduction="sum").item()
        correct += int((logits.argmax(-1) == truth).sum())
    model.train(was_training)
    return Evaluation(loss / count, correct / count, count)
