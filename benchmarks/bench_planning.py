"""Benchmark of planning: time of the first plan for a new shape."""

from __future__ import annotations

import random
import statistics
import time

import pytest
import results
from cells import skip_if_finished

import mpochain as mpo
from mpochain import ChainSpec

_SHAPES = 20


def _unseen(sites: int, count: int) -> list[tuple[ChainSpec, int]]:
    """Draw distinct specs, each with a batch size, so that no cache can help."""
    draw = random.Random(sites)
    specs: dict[ChainSpec, int] = {}
    while len(specs) < count:
        out_dims, in_dims = ([draw.randint(2, 32) for _ in range(sites)] for _ in range(2))
        specs[ChainSpec(out_dims, in_dims, draw.choice((4, 8, 16, 32, 64)))] = draw.choice((1, 16, 256, 2048))
    return list(specs.items())


@pytest.mark.parametrize("sites", [2, 3, 4, 6])
def bench_planning(benchmark, sites):
    name = f"{sites} sites"
    skip_if_finished(benchmark, "planning", name)
    (warm, batch), *rest = _unseen(sites, _SHAPES + 1)
    mpo.plan(warm, batch)
    unseen, seconds = iter(rest), []

    def plan_one():
        spec, batch = next(unseen)
        began = time.perf_counter()
        mpo.plan(spec, batch)
        seconds.append(time.perf_counter() - began)

    benchmark.group = "planning"
    benchmark.pedantic(plan_one, rounds=_SHAPES)
    if benchmark.enabled:
        record = {"shapes": len(seconds), "median": statistics.median(seconds), "maximum": max(seconds)}
        results.add("planning", {"cell": name, **record})
