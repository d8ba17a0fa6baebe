"""Autotuning of contraction plans: the most promising variants are timed, the fastest is stored in the user's cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.bound import bind
from mpochain.execution.foreign import checked
from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.measurement import dtype_of, interleaved, measure_machine
from mpochain.execution.program import Program
from mpochain.planning import Conditions, Considered, ContractionPlan, Memory, Mode, Setting, Variant, plan
from mpochain.planning.kernel_models import kernel_errors, runs
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

__all__ = ["tuned"]

# Number of timed candidates, besides the rebuild: predictions nearly always rank the best one among the first three.
_MOST_PROMISING = 3

# Candidates predicted to take more than this multiple of the best time are not timed: one call can take a minute.
_HOPELESS = 4.0

# Seconds after which no further round of timing starts, for each of the two stages.
_BUDGET = 0.5


def tuned(spec: ChainSpec, batch: int, *, mode: Mode, memory: Memory, setting: Setting) -> ContractionPlan:
    """The measured plan, read from the user's cache folder, or timed now and stored there.

    The machine constants are measured once too, to select the most promising variants. The plan chooses among all
    kernels of ``mpochain.execution.KERNELS``.

    Args:
        spec: spec of the chain.
        batch: number of input rows.
        mode: ``"inference"`` or ``"training"``.
        memory: ``"compact"`` or ``"fast"``.
        setting: element type and device; the number of threads is torch's current one.
    """
    setting = replace(setting, threads=torch.get_num_threads())
    exact = spec.with_bonds(bonds=spec.bonds)
    fastest = _tuned(exact, batch, mode, memory, setting, tuple(KERNELS.values()), str(STORE.path))
    return replace(fastest, spec=spec) if spec.clipped else fastest


@lru_cache(maxsize=4096)
def _tuned(
    spec: ChainSpec,
    batch: int,
    mode: Mode,
    memory: Memory,
    setting: Setting,
    kernels: tuple[Kernel, ...],
    _cache: str,
) -> ContractionPlan:
    if not STORE.machine(setting).measured:
        measure_machine(setting)
    machine = STORE.machine(setting)
    predicted = plan(spec, batch, mode=mode, memory=memory, setting=setting, machine=machine, kernels=kernels)
    names = ",".join(kernel.name for kernel in kernels)
    key = "|".join([str(spec.as_dict()), str(batch), str(setting), mode, memory, names])
    recalled = _recalled(predicted, STORE.decision(key), kernels)
    if recalled is not None:
        return recalled
    timed = _timed(predicted, kernels)
    record = {
        "dense": timed.dense_measured,
        "timed": [
            {**entry.variant.as_dict(), "seconds": entry.measured}
            for entry in timed.considered
            if entry.measured is not None
        ],
    }
    STORE.add_decision(key, record)
    return timed


def _conditions(predicted: ContractionPlan) -> Conditions:
    return Conditions(predicted.batch, predicted.mode, predicted.memory, predicted.setting, predicted.machine)


def _recalled(predicted: ContractionPlan, record: object, kernels: tuple[Kernel, ...]) -> ContractionPlan | None:
    """The plan from an earlier measurement; None if the record is invalid, so that the plan is measured again.

    Records from before kernels had names are invalid.
    """
    if not isinstance(record, dict):
        return None
    candidates = {
        (candidate.groups, candidate.order): candidate
        for candidate in (entry.variant.candidate for entry in predicted.considered)
    }
    by_name, conditions = {kernel.name: kernel for kernel in kernels}, _conditions(predicted)
    considered = []
    try:
        for entry in record["timed"]:
            candidate = candidates[tuple(map(tuple, entry["groups"])), tuple(entry["order"])]
            kernel, tile, seconds = by_name[entry["kernel"]], int(entry["tile"]), float(entry["seconds"])
            if not runs(kernel, candidate.schedule, conditions):
                return None
            options = tuple((name, int(size)) for name, size in entry["options"].items())
            names = [[name for name, _ in variant.options] for variant in kernel.variants(candidate, conditions)]
            sizes = [tile, *(size for _, size in options)]
            if [name for name, _ in options] not in names or min(sizes) < 1 or not 0 < seconds < math.inf:
                return None
            variant = Variant(candidate, predicted.batch, kernel.name, tile, options)
            considered.append(Considered(variant, kernel.seconds(variant, conditions), seconds))
        dense = float(record["dense"])
        return predicted.timed(tuple(considered), dense) if considered and 0 < dense < math.inf else None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _timed(predicted: ContractionPlan, kernels: tuple[Kernel, ...]) -> ContractionPlan:
    """Time the most promising variants of the plan, then the neighbours of the fastest, and return the timed plan."""
    training, conditions = predicted.mode == "training", _conditions(predicted)
    variants: dict[Variant, float] = {}
    for rank, (variant, seconds, _) in enumerate(predicted.considered):
        if seconds > _HOPELESS * predicted.predicted_seconds:
            break
        if rank < _MOST_PROMISING or variant.rebuilds:
            variants[variant] = seconds
            for kernel in kernels:
                with kernel_errors(kernel, predicted.spec):
                    if runs(kernel, variant.schedule, conditions):
                        for rival in kernel.variants(variant.candidate, conditions):
                            variants[rival] = kernel.seconds(rival, conditions)
    by_name = {kernel.name: kernel for kernel in kernels}
    bench = _Bench(predicted, by_name)
    # Independent of the caller's modes and hooks.
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(training),
        torch.autocast(bench.device, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        times, dense = bench.seconds(list(variants))
        best = min(times, key=times.__getitem__)
        kernel = by_name[best.kernel]
        with kernel_errors(kernel, predicted.spec):
            near = [other for other in dict.fromkeys(kernel.neighbours(best, conditions)) if other not in times]
            variants |= {other: kernel.seconds(other, conditions) for other in near}
        if near:
            # Timed later than the others, so only times relative to the best variant are comparable.
            again, _ = bench.seconds([best, *near])
            times |= {other: again[other] / again[best] * times[best] for other in near}
    ranked = sorted(times, key=times.__getitem__)
    entries = tuple(Considered(variant, variants[variant], times[variant]) for variant in ranked)
    return predicted.timed(entries, dense)


class _Bench:
    """Times variants of one plan on random inputs and cores."""

    def __init__(self, predicted: ContractionPlan, kernels: Mapping[str, Kernel]) -> None:
        self.predicted, self.kernels, self.device = predicted, kernels, predicted.setting.device
        self.training = predicted.mode == "training"
        self.dtype = dtype_of(predicted.setting)
        self._generator = torch.Generator(self.device).manual_seed(0)
        spec = predicted.spec
        self.x = self._filled(predicted.batch, spec.in_features)
        self.cores = [self._filled(*shape) for shape in spec.core_shapes]
        self.matrix = self._filled(spec.out_features, spec.in_features)
        self.grad = self._filled(predicted.batch, spec.out_features).detach() if self.training else None

    def _filled(self, *shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=self._generator, device=self.device, dtype=torch.float32)
        return numbers.to(self.dtype).requires_grad_(self.training)

    def seconds(self, variants: list[Variant]) -> tuple[dict[Variant, float], float]:
        """Median seconds of each variant, and of the dense layer."""
        dense = self._step(lambda: F.linear(self.x, self.matrix), [self.x, self.matrix])
        calls = [dense, *(self._call(variant) for variant in variants)]
        first, *rest = interleaved(calls, self.device, budget=_BUDGET)
        return dict(zip(variants, rest, strict=True)), first

    def _call(self, variant: Variant) -> Callable[[], object]:
        kernel = checked(self.kernels[variant.kernel], self.predicted.spec)
        program = Program.of(variant, kernel, self.predicted.machine)
        keeps = program.only_views or (self.predicted.memory == "fast" and not kernel.takes_cores)
        if not self.training and keeps:
            matrices = [matrix.contiguous() for matrix in program.matrices(self.cores)]
            bound = bind(program, matrices, self.x.shape, None, [], None)
            # With few rows the overhead of calls matters, so the bound call is timed, as the layer uses it.
            if bound is not None:
                return lambda: bound(self.x, {})
            return lambda: program.run(self.x, matrices, None)
        return self._step(lambda: program(self.x, self.cores, None), [self.x, *self.cores])

    def _step(self, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
        if self.grad is None:
            return forward
        return lambda: torch.autograd.grad(forward(), leaves, self.grad)
