"""Benchmark of forward passes: the chain against the dense layer, low rank at equal parameters, and every peer."""

from __future__ import annotations

import pytest
import torch
from cells import chosen, finish, hopeless, rotating, skip_if_finished, warm_up
from grid import CELLS
from implementations import OWN, implementations
from scout import fatal
from states import rejected
from torch.nn import functional as F

# Every intermediate state between two cores is rounded to the dtype.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


@pytest.mark.parametrize("cell", CELLS)
def bench_forward(benchmark, cell):
    skip_if_finished(benchmark, "forward", cell.name)
    built, missing, _, exact = implementations(cell.spec, getattr(torch, cell.dtype))
    missing |= rejected(built, cell.spec, cell.batch) | hopeless("forward", cell, built.keys() - OWN)
    if benchmark.enabled:
        missing |= fatal("forward", cell, [name for name in built if name not in OWN and name not in missing])
    inputs = rotating(cell)
    functions = {
        name: (lambda k, run=run: run(inputs[k % len(inputs)])) for name, run in built.items() if name not in missing
    }
    peers = functions.keys() - OWN
    expected = F.linear(inputs[0].float(), exact)

    def check(name, result):
        if name != "low rank":
            deviation = float((result.float() - expected).norm() / expected.norm())
            assert deviation < _TOLERANCE[cell.dtype], f"{name} is {deviation:.1%} off in {cell.name}"

    with torch.no_grad():
        missing |= warm_up(functions, peers, cell.batch, check)
        plans = {name: chosen(built[name].plan(cell.batch)[0]) for name in ("predicted", "compact", "fast")}
        finish(benchmark, "forward", cell, functions, peers, missing, plans)
