"""How well a language model predicts a text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import CorpusError, NonFiniteError, SpecError
from mpochain.language.text import require_window, starts
from mpochain.surgery.calls import logits_of

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """What was measured, and on how much.

    Attributes:
        loss: nats per token, the mean over all tokens that were predicted.
        tokens: how many these are.
        windows: how many pieces the text was read in.
        window: tokens of a piece.
        stride: tokens from one piece to the next; with less than ``window`` only the last ``stride`` of a piece count.
        seconds: the time it took.
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
        """For JSON."""
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
    """Perplexity of a causal language model on a text, read in windows.

    The first token of a window is predicted from nothing and does not count. With a ``stride`` shorter than the window
    each window repeats the end of the one before it, and only tokens that are new count, so that each is predicted from
    more context; the first window counts whole.

    Args:
        model: from ``(1, window)`` token numbers to logits, or to what holds them as ``.logits``; is run in evaluation
            mode.
        tokens: ``(n,)``.
        window: tokens that are read at once, 2 at least.
        stride: from one window to the next, at most ``window``, which is the default.
        count: windows, evenly spread over the text; all by default.
        progress: told how many windows are done, of how many.

    Raises:
        CorpusError: a text that is too short.
        SpecError: a stride out of range, or a window that is longer than the model can read.
        NonFiniteError: a model that predicts NaN.

    Example:
        >>> class Uniform(nn.Module):
        ...     def forward(self, tokens):
        ...         return torch.zeros(*tokens.shape, 8)
        >>> found = perplexity(Uniform(), torch.arange(8).repeat(3), window=6)
        >>> round(found.perplexity, 4), found.tokens, found.windows
        (8.0, 20, 4)
    """
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise SpecError(f"the stride must be from 1 to the window, {window}, got {stride}")
    require_window(model, window)
    if tokens.ndim != 1:
        raise CorpusError(f"expected one row of tokens, got a tensor of shape {tuple(tokens.shape)}")
    places = starts(len(tokens), window, count, stride)
    began = time.perf_counter()
    training = model.training
    device = next((parameter.device for parameter in model.parameters()), tokens.device)
    total, predicted = 0.0, 0
    model.eval()
    try:
        with torch.inference_mode():
            for number, start in enumerate(places, 1):
                piece = tokens[start : start + window].to(device)
                new = window - 1 if start == 0 else min(stride, window - 1)
                logits = logits_of(model(piece[None]))[0, -new - 1 : -1].float()
                total += float(F.cross_entropy(logits, piece[-new:], reduction="sum"))
                predicted += new
                if progress is not None:
                    progress(number, len(places))
    finally:
        model.train(training)
    if not math.isfinite(total):
        raise NonFiniteError("the model predicts NaN or infinite numbers; run it in a wider type")
    return Perplexity(total / predicted, predicted, len(places), window, stride, time.perf_counter() - began)
