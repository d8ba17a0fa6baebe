"""Benchmark of memory: a training step's peak beyond the parameters, gradients and outputs that any layer needs."""

from __future__ import annotations

import math

import grid
import pytest
import results
import torch
from cells import chosen, skip_if_finished, warm_up
from grid import Cell
from training_step import PEERS, layers, step

from mpochain.execution.peak_memory import peak_bytes

_LAYERS = ("dense", "compact", *PEERS, "plain chain")


def _cells(shape, bonds, batches) -> list[Cell]:
    return [Cell("2 sites", bond, grid.spec_of("2 sites", *shape, bond), batch) for bond in bonds for batch in batches]


_CASES = {
    "tiny": _cells((32, 16), (2,), (3,)),
    "small": _cells((768, 768), (4,), (256,)),
    "full": [
        *_cells((3072, 768), (4, 32), (256, 2048)),
        *_cells((3072, 768), (4,), (16384,)),
        *_cells((4096, 4096), (4, 32), (256, 2048)),
    ],
}[grid.NAME]


def _bytes(tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name.replace(" ", "-")) for cell in _CASES])
def bench_memory(benchmark, cell):
    skip_if_finished(benchmark, "memory", cell.name)
    dtype = getattr(torch, cell.dtype)
    # kept=1 allows larger states than in the timings: they are the point here, and each layer runs only one step.
    built, missing = layers(cell.spec, cell.batch, dtype, kept=1)
    x = torch.randn(cell.batch, cell.spec.in_features, dtype=dtype, requires_grad=True)
    grad = torch.randn(cell.batch, cell.spec.out_features, dtype=dtype)
    functions = {name: step(built[name], [x], grad) for name in _LAYERS if name in built and name not in missing}
    missing |= warm_up(functions, PEERS, cell.batch, longest=math.inf)
    beyond = {}
    for name, function in functions.items():
        x.grad = None
        for parameter in built[name].parameters():
            parameter.grad = None
        peak = peak_bytes(lambda function=function: function(0))
        gradients = sum(_bytes(parameter.grad) for parameter in built[name].parameters())
        beyond[name] = peak - _bytes(grad) - _bytes(x.grad) - gradients
    # Rebuilding inherently needs the dense weight and its gradient.
    dense = 2 * _bytes(built["dense"].weight)
    plan = chosen(built["compact"].plan(cell.batch, training=True)[0])
    benchmark.group = f"memory: {cell.name}"
    benchmark.extra_info.update(beyond=beyond)
    benchmark.pedantic(functions["compact"], args=(0,), rounds=1)
    if benchmark.enabled:
        record = {"cell": cell.name, "batch": cell.batch, "spec": cell.spec.as_dict(), "plans": {"compact": plan}}
        results.add("memory", {**record, "beyond": beyond, "dense_and_gradient": dense, "missing": missing})
