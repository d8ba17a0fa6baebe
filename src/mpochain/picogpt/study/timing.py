"""Times of every design of a study, all in turn, so that noise meets them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mpochain.execution.peak_memory import peak_bytes
from mpochain.picogpt.design import Design
from mpochain.picogpt.model import PicoGPT, build
from mpochain.picogpt.study.step import TrainingStep
from mpochain.surgery import set_execution

__all__ = ["timing"]


def timing(designs: Iterable[Design], vocab_size: int, *, sequences: int = 32, rounds: int = 5) -> list[dict[str, Any]]:
    """Forward passes over one and many sequences, compact and fast, and a training step of many.

    Plans of forward passes are measured, and their products are PyTorch's own; steps are made as the study trains, by
    plans that are not measured. The bfloat16 step is the same under autocast.

    Args:
        designs: what to time.
        vocab_size: number of characters.
        sequences: how many are many.
        rounds: how often each is timed, after once to warm up.

    Returns:
        One record for each design, with medians in seconds, the seconds of every step, which can be compared with those
        of another design in the same round, and the most bytes of a step beyond what was alive before it.
    """
    models = {design: build(design=design, vocab_size=vocab_size, seed=0) for design in designs}
    calls: dict[tuple[Design, str], Callable[[], object]] = {}
    records: dict[Design, dict[str, Any]] = {}
    for design, model in models.items():
        one = torch.randint(vocab_size, (1, PicoGPT.context))
        many = torch.randint(vocab_size, (sequences, PicoGPT.context))
        chains = design.family != "dense"
        records[design] = {"design": design.as_dict()}
        calls[design, "step"] = TrainingStep(model, many)
        calls[design, "step_bfloat16"] = TrainingStep(model, many, torch.bfloat16)
        for memory in ("compact", "fast") if chains else ("compact",):
            # A model runs in one way at a time, so each way has its own.
            other = build(design=design, vocab_size=vocab_size, seed=0)
            if chains:
                set_execution(other, memory=memory, autotune=True)
            for label, tokens in (("one", one), ("many", many)):
                calls[design, f"{memory}_{label}"] = _forward(other, tokens)
    seconds: dict[tuple[Design, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:  # the first round makes plans and warms caches
                seconds[key].append(time.perf_counter() - began)
    for (design, what), values in seconds.items():
        records[design][f"{what}_seconds"] = statistics.median(values)
        if what.startswith("step"):
            records[design][f"{what}_rounds"] = values
    for design in models:
        records[design]["step_peak_bytes"] = peak_bytes(calls[design, "step"])
    return list(records.values())


def _forward(model: PicoGPT, tokens: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(tokens)

    return run
