"""Autotuning of contraction plans: the most promising variants are timed, the fastest is stored in the user's cache."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.measurement import trusted_machine
from mpochain.execution.plan_bench import PlanBench
from mpochain.execution.plan_records import conditions_of, measured_before, remember
from mpochain.planning import Considered, ContractionPlan, Machine, Memory, Mode, Setting, Variant, plan
from mpochain.planning.kernel_models import kernel_errors, runs
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

__all__ = ["tuned"]

# Number of timed candidates, besides the rebuild: predictions nearly always rank the best one among the first three.
_MOST_PROMISING = 3

# Candidates predicted to take more than this multiple of the best time are not timed: one call can take a minute.
_HOPELESS = 4.0


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


@lru_cache(maxsize=64)
def _machine(setting: Setting, _cache: str) -> Machine:
    """The constants of the machine, which are questioned once in a process."""
    return trusted_machine(setting)


@lru_cache(maxsize=4096)
def _tuned(
    spec: ChainSpec,
    batch: int,
    mode: Mode,
    memory: Memory,
    setting: Setting,
    kernels: tuple[Kernel, ...],
    cache: str,
) -> ContractionPlan:
    def predicted(machine: Machine) -> ContractionPlan:
        return plan(spec, batch, mode=mode, memory=memory, setting=setting, machine=machine, kernels=kernels)

    recalled = measured_before(predicted(STORE.machine(setting)), kernels)
    if recalled is not None and recalled.dense_measured is not None:
        return recalled
    timed = _timed(predicted(_machine(setting, cache)), kernels)
    remember(timed, kernels)
    return timed


def _timed(predicted: ContractionPlan, kernels: tuple[Kernel, ...]) -> ContractionPlan:
    """Time the most promising variants of the plan, then the neighbours of the fastest, and return the timed plan."""
    training, conditions = predicted.mode == "training", conditions_of(predicted)
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
    bench = PlanBench(predicted, by_name)
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
