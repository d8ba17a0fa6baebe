"""Timing of every design of the study, in turn, so that noise affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mpochain.execution.peak_memory import peak_bytes
from mpochain.surgery import set_execution
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT, build
from studies.picogpt.study.step import TrainingStep

__all__ = ["timing"]


def timing(designs: Iterable[Design], vocab_size: int, *, sequences: int = 32, rounds: int = 5) -> list[dict[str, Any]]:
    """Time forward passes over one and many sequences, compact and fast, and a training step on many.

    Forward passes use measured plans and PyTorch's own products; steps use the plans and products of the study's
    training. The bfloat16 step is the same step under autocast.

    Args:
        designs: models to time.
        vocab_size: number of characters.
        sequences: number of sequences for "many" and for a step.
        rounds: number of measurements after one warm-up round.

    Returns:
        One record per design: medians in seconds, the seconds of the step in every round, comparable between designs of
        the same round, and the additional peak bytes during a step.
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
            # Execution is set per model, so each setting needs its own model.
            forward_model = build(design=design, vocab_size=vocab_size, seed=0)
            if chains:
                set_execution(forward_model, cache=memory == "fast", autotune=True)
            for label, tokens in (("one", one), ("many", many)):
                calls[design, f"{memory}_{label}"] = _forward(forward_model, tokens)
    seconds: dict[tuple[Design, str], list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:  # the first round creates plans and warms caches
                seconds[key].append(time.perf_counter() - began)
    for (design, call_name), values in seconds.items():
        records[design][f"{call_name}_seconds"] = statistics.median(values)
        if call_name in ("step", "step_bfloat16"):
            records[design][f"{call_name}_rounds"] = values
    for design in models:
        records[design]["step_peak_bytes"] = peak_bytes(calls[design, "step"])
    return list(records.values())


def _forward(model: PicoGPT, tokens: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(tokens)

    return run
