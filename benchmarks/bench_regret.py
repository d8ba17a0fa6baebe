"""Benchmark of the default plan: its time over that of the best plan, in compact and in fast execution.

The first ten calls of a layer alternate among plans; what is timed here is the layer after them, without any measured
constants or plans of earlier runs. All plans are timed once, then the best of them again beside the default one and the
dense layer, since the shortest of many noisy times is too short.
"""

from __future__ import annotations

import pytest
import results
import torch
from cells import skip_if_finished
from grid import NAME, Cell, cells
from implementations import random_chain
from interleave import interleave
from torch.nn import functional as F

import mpochain as mpo
from mpochain import MPOLinear
from mpochain.execution import KERNELS
from mpochain.execution.measurement import setting_of
from mpochain.execution.plan_bench import PlanBench
from mpochain.execution.plan_records import conditions_of
from mpochain.planning import Considered, ContractionPlan
from mpochain.planning.kernel_models import runs

_CALLS = 10
# Plans predicted to take more than this multiple of the best are not timed.
_HOPELESS = 4.0
# Multiply-adds of the dense layer, beyond which one cell takes a minute.
_MOST_MACS = 1 << 33


def _cells() -> list[Cell]:
    few = [cell for cell in cells() if cell.batch * cell.spec.dense_parameters <= _MOST_MACS]
    return [cell for cell in few if cell.dtype == "float32" and (cell.batch > 1 or NAME == "tiny")]


def _considered(plan: ContractionPlan) -> list[Considered]:
    """All variants of a plan by all kernels that are not hopeless, fastest first."""
    conditions = conditions_of(plan)
    found = {}
    for entry in plan.considered:
        for kernel in KERNELS.values():
            if runs(kernel, entry.variant.schedule, conditions):
                for variant in kernel.variants(entry.variant.candidate, conditions):
                    found[variant] = kernel.seconds(variant, conditions)
    ranked = [Considered(variant, seconds) for variant, seconds in sorted(found.items(), key=lambda item: item[1])]
    return [entry for entry in ranked if entry.predicted <= _HOPELESS * plan.predicted_seconds]


@pytest.mark.parametrize("memory", ["compact", "fast"])
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name.replace(" ", "-")) for cell in _cells()])
def bench_regret(benchmark, cell, memory, tmp_path, monkeypatch):
    name = f"{cell.name}, {memory}"
    skip_if_finished(benchmark, "regret", name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    setting = setting_of(torch.float32, "cpu")
    kernels = {kernel.name: kernel for kernel in KERNELS.values()}
    plan = mpo.plan(cell.spec, cell.batch, memory=memory, setting=setting, kernels=tuple(kernels.values()))
    layer = MPOLinear.from_chains(random_chain(cell.spec, torch.float32)).set_execution(cache=memory == "fast")
    quick = {} if benchmark.enabled else {"rounds": 1, "round_seconds": 0.0}
    with torch.no_grad():
        bench = PlanBench(plan, kernels)
        for _ in range(_CALLS):
            layer(bench.x)
        variants = [entry.variant for entry in _considered(plan)]
        calls = {str(variant): bench.call(variant) for variant in variants}
        assert str(plan.chosen) in calls
        timings = interleave({key: lambda _, call=call: call() for key, call in calls.items()}, **quick)
        best = min(timings, key=lambda key: timings[key]["median"])
        # Each with matrices of its own, or equal plans would find them in the cache after one another.
        chosen = next(variant for variant in variants if str(variant) == best)
        by_prediction, by_time = (PlanBench(plan, kernels).call(variant) for variant in (plan.chosen, chosen))
        functions = {
            "dense": lambda _: F.linear(bench.x, bench.matrix),
            "default": lambda _: layer(bench.x),
            "predicted": lambda _: by_prediction(),
            "best": lambda _: by_time(),
        }
        timings = interleave(functions, **(quick or {"rounds": 15, "most_seconds": 0.3}))
    benchmark.group = f"regret: {name}"
    benchmark.extra_info.update(cell=name, timings=timings)
    benchmark.pedantic(functions["default"], args=(0,), rounds=1)
    if benchmark.enabled:
        settled = layer.plan(cell.batch)[0]
        record = {"cell": name, "kind": cell.kind, "bond": cell.bond, "batch": cell.batch, "memory": memory}
        record |= {"spec": cell.spec.as_dict(), "timings": timings, "plans": len(variants)}
        followed = {"default": str(settled.chosen), "predicted": str(plan.chosen), "best": best}
        results.add("regret", record | {"chosen": followed})
