"""Benchmark of training steps: the chain against the dense layer, two autograd baselines, and peers with layers."""

from __future__ import annotations

import pytest
import torch
from cells import chosen, finish, hopeless, rotating, skip_if_finished, warm_up
from grid import CELLS
from scout import fatal
from training_step import PEERS, layers, step


@pytest.mark.parametrize("cell", CELLS)
def bench_training(benchmark, cell):
    skip_if_finished(benchmark, "training", cell.name)
    dtype = getattr(torch, cell.dtype)
    built, missing = layers(cell.spec, cell.batch, dtype)
    missing |= hopeless("training", cell, PEERS)
    if benchmark.enabled:
        tried = [name for name in (*PEERS, "plain chain") if name in built and name not in missing]
        missing |= fatal("training", cell, tried)
    inputs = rotating(cell, requires_grad=True)
    grad = torch.randn(cell.batch, cell.spec.out_features, dtype=dtype)
    functions = {name: step(layer, inputs, grad) for name, layer in built.items() if name not in missing}
    missing |= warm_up(functions, PEERS, cell.batch)
    plans = {"compact": chosen(built["compact"].plan(cell.batch, training=True)[0])}
    finish(benchmark, "training", cell, functions, PEERS, missing, plans)
