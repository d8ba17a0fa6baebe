"""Forward passes: the dense layer, low rank at equal parameters, and the planned chain."""

from __future__ import annotations

import pytest
import torch
from grid import CELLS
from torch import nn
from torch.nn import functional as F

from mpochain import MPOLinear, shapes


def dense(spec):
    weight = torch.randn(spec.shape)
    return lambda x: F.linear(x, weight)


def low_rank(spec):
    rank = max(spec.parameters // sum(spec.shape), 1)
    left, right = torch.randn(spec.out_features, rank), torch.randn(rank, spec.in_features)
    return lambda x: F.linear(F.linear(x, right), left)


def chain(spec):
    return MPOLinear(spec.in_features, spec.out_features, spec=spec, bias=False)


@pytest.mark.parametrize("implementation", [dense, low_rank, chain], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("spec", "batch"), CELLS)
def bench_forward(benchmark, implementation, spec, batch):
    benchmark.group = f"forward {spec} batch {batch}"
    run = implementation(spec)
    # The input rotates, so that it is not always in cache already.
    inputs = [torch.randn(batch, spec.in_features) for _ in range(8)]
    turn = iter(range(10**9))
    with torch.no_grad():
        y = benchmark(lambda: run(inputs[next(turn) % 8]))
    assert y.shape == (batch, spec.out_features)


def bench_low_rank_has_no_more_parameters():
    for spec, _ in (param.values for param in CELLS):
        rank = max(spec.parameters // sum(spec.shape), 1)
        assert shapes.low_rank(*spec.shape, rank).parameters <= max(spec.parameters, sum(spec.shape))
    assert isinstance(chain(spec), nn.Module)
