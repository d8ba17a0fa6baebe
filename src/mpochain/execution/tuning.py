"""Measured plans: the most promising variants run on this machine, and the fastest kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.bound import bind
from mpochain.execution.measurement import dtype_of, interleaved, measure_machine
from mpochain.execution.program import Program
from mpochain.planning import Considered, ContractionPlan, Memory, Mode, Setting, Variant, plan
from mpochain.planning.store import STORE
from mpochain.planning.variants import neighbours, rivals
from mpochain.spec import ChainSpec

__all__ = ["tuned"]

# Candidates that are timed, the rebuild beside them: predictions rank the best one among the first three nearly always.
_MOST_PROMISING = 3

# A candidate predicted to take this many times as long as the best is not timed: one call of it can take a minute.
_HOPELESS = 4.0

# Seconds after which no further round of timing begins, for each of the two stages.
_BUDGET = 0.5


def tuned(spec: ChainSpec, batch: int, *, mode: Mode, memory: Memory, setting: Setting) -> ContractionPlan:
    """The measured plan: recalled from the user's cache, or timed now and kept there.

    The machine's own constants are measured too, once, so that what is timed is the most promising.

    Args:
        spec: the chain.
        batch: number of input rows.
        mode: ``"inference"`` or ``"training"``.
        memory: ``"compact"`` or ``"fast"``.
        setting: element type and device; threads are torch's present ones, whatever it says.
    """
    setting = replace(setting, threads=torch.get_num_threads())
    exact = spec.with_bonds(bonds=spec.bonds)
    made = _tuned(exact, batch, mode, memory, setting, str(STORE.path))
    return replace(made, spec=spec) if spec.clipped else made


@lru_cache(maxsize=4096)
def _tuned(spec: ChainSpec, batch: int, mode: Mode, memory: Memory, setting: Setting, _cache: str) -> ContractionPlan:
    if not STORE.machine(setting).measured:
        measure_machine(setting)
    predicted = plan(spec, batch, mode=mode, memory=memory, setting=setting)
    key = "|".join([str(spec.as_dict()), str(batch), str(setting), mode, memory])
    recalled = _recalled(predicted, STORE.decision(key))
    if recalled is not None:
        return recalled
    timed = _timed(predicted)
    record = {
        "dense": timed.dense_measured,
        "timed": [
            {**each.variant.as_dict(), "seconds": each.measured}
            for each in timed.considered
            if each.measured is not None
        ],
    }
    STORE.add_decision(key, record)
    return timed


def _recalled(predicted: ContractionPlan, record: object) -> ContractionPlan | None:
    """The plan as it was measured before; None if the record is not one of this library's, and has to be made anew."""
    if not isinstance(record, dict):
        return None
    known = {(each.variant.candidate.groups, each.variant.candidate.order): each for each in predicted.considered}
    considered = []
    try:
        for entry in record["timed"]:
            like = known[tuple(map(tuple, entry["groups"])), tuple(entry["order"])]
            tile, panel, seconds = int(entry["tile"]), int(entry["panel"]), float(entry["seconds"])
            if min(tile, panel) < 1 or not seconds > 0:
                return None
            variant = replace(like.variant, tile=tile, panel=panel, keeps_states=entry["keeps_states"] is True)
            considered.append(Considered(variant, like.predicted, seconds))
        dense = float(record["dense"])
        return predicted.timed(tuple(considered), dense) if considered and dense > 0 else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _timed(predicted: ContractionPlan) -> ContractionPlan:
    training, cached = predicted.mode == "training", predicted.memory == "fast"
    variants: dict[Variant, float] = {}
    for place, (variant, seconds, _) in enumerate(predicted.considered):
        if seconds > _HOPELESS * predicted.predicted_seconds:
            break
        if place < _MOST_PROMISING or variant.rebuilds:
            variants[variant] = seconds
            for other in rivals(variant, training=training, merged_is_cached=cached, machine=predicted.machine):
                variants[other] = seconds
    bench = _Bench(predicted)
    # Work of its own, whatever the caller is in the middle of.
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(training),
        torch.autocast(bench.device, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        times, dense = bench.seconds(list(variants))
        best = min(times, key=times.__getitem__)
        near = [other for other in dict.fromkeys(neighbours(best, predicted.machine)) if other not in times]
        if near:
            for other in near:
                variants[other] = variants[best]
            # Timed at another moment, so only its times relative to the best are comparable with the first ones.
            again, _ = bench.seconds([best, *near])
            times |= {other: again[other] / again[best] * times[best] for other in near}
    ranked = sorted(times, key=times.__getitem__)
    return predicted.timed(tuple(Considered(each, variants[each], times[each]) for each in ranked), dense)


class _Bench:
    """Runs variants of one plan on random numbers of its own."""

    def __init__(self, made: ContractionPlan) -> None:
        self.made, self.device = made, made.setting.device
        self.training = made.mode == "training"
        self.dtype = dtype_of(made.setting)
        self._generator = torch.Generator(self.device).manual_seed(0)
        spec = made.spec
        self.x = self._filled(made.batch, spec.in_features)
        self.cores = [self._filled(*shape) for shape in spec.core_shapes]
        self.matrix = self._filled(spec.out_features, spec.in_features)
        self.grad = self._filled(made.batch, spec.out_features).detach() if self.training else None

    def _filled(self, *shape: int) -> Tensor:
        made = torch.randn(*shape, generator=self._generator, device=self.device)
        return made.to(self.dtype).requires_grad_(self.training)

    def seconds(self, variants: list[Variant]) -> tuple[dict[Variant, float], float]:
        """Seconds of each variant, and of the dense layer."""
        dense = self._step(lambda: F.linear(self.x, self.matrix), [self.x, self.matrix])
        calls = [dense, *(self._call(variant) for variant in variants)]
        first, *rest = interleaved(calls, self.device, budget=_BUDGET)
        return dict(zip(variants, rest, strict=True)), first

    def _call(self, variant: Variant) -> Callable[[], object]:
        program = Program.of(variant)
        if not self.training and (program.only_views or self.made.memory == "fast"):
            matrices = [matrix.contiguous() for matrix in program.matrices(self.cores)]
            bound = bind(program, matrices, self.x.shape, None, [], None)
            # On few rows the calls count, so they are those that the layer will make.
            if bound is not None:
                return lambda: bound(self.x, {})
            return lambda: program.run(self.x, matrices, None)
        return self._step(lambda: program(self.x, self.cores, None), [self.x, *self.cores])

    def _step(self, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
        if self.grad is None:
            return forward
        return lambda: torch.autograd.grad(forward(), leaves, self.grad)
