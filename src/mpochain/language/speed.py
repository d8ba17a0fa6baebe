"""How fast language models read a prompt and write token by token, beside each other."""

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
from mpochain.errors import SpecError
from mpochain.surgery.calls import logits_of

__all__ = ["Speed", "compare_speed"]


@dataclass(frozen=True)
class Speed:
    """Medians over rounds, and the spread between the quartiles.

    Attributes:
        prefill: seconds to read the whole prompt at once.
        decode: seconds to write one token after it.
        prefill_spread: between the quartiles, seconds.
        decode_spread: the same.
        prompt: tokens of the prompt.
        rounds: how often each was timed.
    """

    prefill: float
    decode: float
    prefill_spread: float
    decode_spread: float
    prompt: int
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_speed(
    models: Mapping[str, nn.Module], prompt: Tensor, *, rounds: int = 7, written: int = 8
) -> dict[str, Speed]:
    """Time models of transformers in turn, so that what else the machine does meets all of them.

    Args:
        models: causal language models with a cache of keys and values.
        prompt: ``(1, n)`` token numbers.
        rounds: how often each is timed.
        written: tokens that are written in a round, one at a time, after the prompt.

    Raises:
        SpecError: no rounds or tokens.
    """
    if rounds < 1 or written < 1 or prompt.ndim != 2 or not prompt.numel():
        raise SpecError("compare_speed needs a prompt (1, n), and at least one round and one token to write")
    read: dict[str, list[float]] = {name: [] for name in models}
    wrote: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            seconds = _round(model, prompt, written)
            if number:  # the first round warms up: plans, caches, threads
                read[name].append(seconds[0])
                wrote[name].append(seconds[1])
    return {
        name: Speed(
            statistics.median(read[name]),
            statistics.median(wrote[name]),
            _spread(read[name]),
            _spread(wrote[name]),
            int(prompt.shape[1]),
            rounds,
        )
        for name in models
    }


@torch.inference_mode()
def _round(model: Any, prompt: Tensor, written: int) -> tuple[float, float]:
    """Seconds of a prefill, and of one written token."""
    # The logits of one token are all that writing needs; not every model can be told so.
    family = family_of(model)
    fewer = {family.last_logits: 1} if family.last_logits in inspect.signature(model.forward).parameters else {}
    output, prefill = _timed(lambda: model(prompt, **{family.cache: True}, **fewer))

    def write() -> None:
        past, token = getattr(output, family.past), logits_of(output)[:, -1:].argmax(-1)
        for _ in range(written):
            step = model(token, **{family.past: past, family.cache: True})
            token = logits_of(step)[:, -1:].argmax(-1)

    _, decode = _timed(write)
    return prefill, decode / written


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
