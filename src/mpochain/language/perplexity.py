"""Perplexity of a causal language model on a text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.distributed import without_gradients
from mpochain.errors import ArgumentError, CorpusError, NonFiniteError
from mpochain.language.text import require_vocabulary, require_window, starts
from mpochain.surgery.calls import logits_of
from mpochain.surgery.causality import require_causal

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """Loss of a model on a text, with the settings of the measurement.

    Attributes:
        loss: mean over all predicted tokens, in nats per token.
        tokens: number of predicted tokens.
        windows: number of windows.
        window: tokens per window.
        stride: tokens from the start of a window to the start of the next; if it is less than ``window``, only the last
            ``stride`` tokens of each window after the first count.
        seconds: duration of the measurement.
    """

    loss: float
    tokens: int
    windows: int
    window: int
    stride: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the perplexity, for JSON."""
        return asdict(self) | {"perplexity": self.perplexity}


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int = 512,
    stride: int | None = None,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a causal language model on a text, window by window.

    The first token of a window has no context and does not count. With a ``stride`` shorter than the window, each
    window overlaps the previous one and only its new tokens count, so that tokens are predicted from more context. The
    first window counts all tokens but its first.

    Args:
        model: module from token ids ``(1, window)`` to logits ``(1, window, V)``, or to an output with ``.logits``. It
            runs in evaluation mode, and its former mode is restored.
        tokens: ``(n,)``, integers.
        window: tokens per window, at least 2.
        stride: tokens from the start of a window to the start of the next, from 1 to ``window``; by default ``window``.
        count: number of windows, spread evenly over the text; by default all.
        progress: called after every window with the number of windows done and the total number.

    Raises:
        CorpusError: the text is too short.
        ArgumentError: the stride is out of range, the window is longer than the model's context, or the model is no
            causal language model, see ``mpochain.surgery.causality``.
        NonFiniteError: the model predicts NaN.

    Example:
        >>> import torch
        >>> class Uniform(nn.Module):
        ...     def forward(self, tokens):
        ...         return torch.zeros(*tokens.shape, 8)
        >>> result = perplexity(Uniform(), torch.arange(8).repeat(3), window=6)
        >>> round(result.perplexity, 4), result.tokens, result.windows
        (8.0, 20, 4)
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise ArgumentError(f"the stride must be from 1 to the window, {window}, got {stride}")
    require_window(model, window)
    if tokens.ndim != 1:
        raise CorpusError(f"expected one row of tokens (n,), got a tensor of shape {tuple(tokens.shape)}")
    require_vocabulary(model, tokens)
    positions = starts(len(tokens), window, count, stride)
    began = time.perf_counter()
    training = model.training
    device = next((parameter.device for parameter in model.parameters()), tokens.device)
    total, predicted = 0.0, 0
    model.eval()
    try:
        with without_gradients(model):
            require_causal(model, tokens[positions[0] : positions[0] + window].to(device))
            for number, start in enumerate(positions, 1):
                text = tokens[start : start + window].to(device)
                new = window - 1 if start == 0 else min(stride, window - 1)
                logits = logits_of(model(text[None]))[0, -new - 1 : -1].float()
                total += float(F.cross_entropy(logits, text[-new:], reduction="sum"))
                predicted += new
                if progress is not None:
                    progress(number, len(positions))
    finally:
        model.train(training)
    if not math.isfinite(total):
        raise NonFiniteError("the model predicts NaN or infinite logits; run it in float32")
    return Perplexity(total / predicted, predicted, len(positions), window, stride, time.perf_counter() - began)
