"""Inference speed of language models: prefill and decoding, measured by alternating between models."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import family_of
from mpochain.errors import ArgumentError
from mpochain.surgery.calls import logits_of

__all__ = ["Speed", "compare_speed"]


@dataclass(frozen=True)
class Speed:
    """Inference speed of one model: medians over rounds, with interquartile ranges.

    Attributes:
        prefill: seconds to read the prompt in one call.
        decode: seconds to generate one token after the prompt.
        prefill_spread: interquartile range of ``prefill``, seconds.
        decode_spread: interquartile range of ``decode``, seconds.
        prompt: number of tokens in the prompt.
        rounds: number of timed rounds.
    """

    prefill: float
    decode: float
    prefill_spread: float
    decode_spread: float
    prompt: int
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def compare_speed(
    models: Mapping[str, nn.Module],
    prompt: Tensor,
    *,
    rounds: int = 7,
    written: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Speed]:
    """Time transformers models in turn, so that other load on the machine affects all of them alike.

    An extra first round creates plans and fills caches and is not counted. A model without a key-value cache reads the
    whole text again for every token.

    Args:
        models: causal language models by name.
        prompt: token ids ``(1, n)``.
        rounds: number of timed rounds.
        written: tokens generated after the prompt in each round, one per call.
        progress: called after every round with the number of rounds done and the total number.

    Raises:
        ArgumentError: the prompt is empty or has another shape, or there are no rounds or tokens to generate.
    """
    if rounds < 1 or written < 1 or prompt.ndim != 2 or not prompt.numel():
        raise ArgumentError(
            f"compare_speed needs a prompt (1, n), at least one round and one token to generate, got {rounds=}, "
            f"{written=} and a prompt of shape {tuple(prompt.shape)}"
        )
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            seconds = _round(model, prompt.to(next(model.parameters()).device), written)
            if number:  # round 0 warms up
                prefill[name].append(seconds[0])
                decode[name].append(seconds[1])
        if progress is not None:
            progress(number + 1, rounds + 1)
    return {
        name: Speed(
            statistics.median(prefill[name]),
            statistics.median(decode[name]),
            _spread(prefill[name]),
            _spread(decode[name]),
            int(prompt.shape[1]),
            rounds,
        )
        for name in models
    }


@torch.inference_mode()
def _round(model: Any, prompt: Tensor, written: int) -> tuple[float, float]:
    """Return the seconds of one prefill, and the mean seconds per generated token."""
    # Generation needs only the logits of the last token, but not every model has an argument for that.
    family = family_of(model)
    last_only = {family.last_logits: 1} if family.last_logits in inspect.signature(model.forward).parameters else {}
    keeps_cache = family.cache in inspect.signature(model.forward).parameters
    cached = {family.cache: True} if keeps_cache else {}
    output, prefill = _timed(lambda: model(prompt, **cached, **last_only))
    past = getattr(output, family.past, None)

    def generate() -> None:
        state, token = past, logits_of(output)[:, -1:].argmax(-1)
        text = torch.cat([prompt, token], 1)
        for _ in range(written):
            step = model(text) if state is None else model(token, **{family.past: state}, **cached)
            token = logits_of(step)[:, -1:].argmax(-1)
            text = torch.cat([text, token], 1)
            state = None if state is None else getattr(step, family.past)

    _, decode = _timed(generate)
    return prefill, decode / written


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    _wait()
    began = time.perf_counter()
    result = function()
    _wait()
    return result, time.perf_counter() - began


def _wait() -> None:
    """Wait for an accelerator, which works on after a call has returned."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
