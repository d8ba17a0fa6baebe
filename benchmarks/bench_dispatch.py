"""Benchmark of dispatch overhead: a small layer's forward pass against the fewest torch calls for the same work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import results
import torch
from cells import skip_if_finished, warm_up
from grid import spec_of
from interleave import interleave
from torch import Tensor
from torch.nn import functional as F

import mpochain as mpo
from mpochain import MPOLinear

_SIZE, _BOND = 128, 4


def _products(layer: MPOLinear) -> Callable[[Tensor], Tensor]:
    """Return the layer's plan for one row as bare products of prepared matrices; the last product adds the bias."""
    plan, bias = layer.plan(1)[0], layer.bias
    schedule = plan.schedule
    assert not schedule.merges or plan.memory == "fast", "merging at every call is arithmetic, not overhead"
    merged = plan.merge(*layer.cores[0])
    if len(merged) == 1:
        weight = merged[0].reshape(layer.out_features, layer.in_features)
        return lambda x: F.linear(x, weight, bias)
    steps = []
    for step in schedule.sweeps:
        matrix = merged[step.site].permute(step.axes).reshape(step.kept, step.summed).contiguous()
        if step.after == 1:
            steps.append((torch.mm, torch.addmm, (step.before, step.summed), (step.before, step.kept), matrix.t(), 1))
        elif step.before == 1:
            steps.append((torch.mm, torch.addmm, (step.summed, step.after), (step.kept, step.after), matrix, 0))
        else:
            several = matrix.expand(step.before, *matrix.shape)
            came, goes = ((step.before, side, step.after) for side in (step.summed, step.kept))
            steps.append((torch.bmm, torch.baddbmm, came, goes, several, 0))
    *first, (_, product_and_sum, last_shape, out_shape, last, last_is_right) = steps
    first = [(product, shape, matrix, right) for product, _, shape, _, matrix, right in first]
    bias = bias.view(out_shape)

    def run(x: Tensor) -> Tensor:
        state = x
        for product, shape, matrix, right in first:
            state = state.view(shape)
            state = product(state, matrix) if right else product(matrix, state)
        state = state.view(last_shape)
        y = product_and_sum(bias, state, last) if last_is_right else product_and_sum(bias, last, state)
        return y.view(1, -1)

    return run


@pytest.mark.parametrize("memory", ["compact", "fast"])
@pytest.mark.parametrize("kind", ["2 sites", "3 sites", "2 sites skewed", "3 sites skewed"])
def bench_dispatch(benchmark, kind, memory):
    name = f"{kind} {memory}"
    skip_if_finished(benchmark, "dispatch", name)
    layer = MPOLinear(_SIZE, _SIZE, spec=spec_of(kind, _SIZE, _SIZE, _BOND))
    mpo.set_execution(layer, cache=memory == "fast")
    weight, bias = layer.weight.detach(), layer.bias
    x = torch.randn(1, _SIZE)
    with torch.no_grad():
        products = _products(layer)
        functions = {
            "layer": lambda k: layer(x),
            "products": lambda k: products(x),
            "dense": lambda k: F.linear(x, weight, bias),
        }
        expected = functions["dense"](0)
        warm_up(functions, (), 1, lambda _, y: torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-5))
        timings = interleave(functions, rounds=25 if benchmark.enabled else 1)
        benchmark.group = f"dispatch: {name}"
        benchmark.extra_info.update(timings=timings)
        benchmark.pedantic(layer, args=(x,), rounds=3)
    plan = layer.plan(1)[0]
    if benchmark.enabled:
        record = {"cell": name, "memory": memory, "chosen": str(plan.chosen), "rebuilds": plan.chosen.rebuilds}
        results.add("dispatch", {**record, "timings": timings})
