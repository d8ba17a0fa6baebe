"""``make gpu-check``: the contract of the kernels in Triton on an NVIDIA GPU, and their times beside torch's products.

Runs the tests marked ``cuda``, then times cells in interleaved rounds, and writes one JSON file. Takes less than eight
minutes: tests that take longer are ended, and cells that would start later are left out, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain import ChainSpec, plan
from mpochain.execution import KERNELS, Program
from mpochain.execution.kernels.device import runs_triton
from mpochain.execution.kernels.low_rank import low_rank_product
from mpochain.execution.measurement import interleaved
from mpochain.planning import Conditions, Machine, Setting, candidates
from mpochain.planning.kernel_models import runs
from mpochain.report import provenance
from mpochain.system.files import write_bytes

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "gpu.json"

# Seconds after which tests are ended, and after which no further cell starts.
_TESTS, _CELLS = 270.0, 420.0
# Seconds after which no further round of a cell starts.
_ROUNDS = 0.3

SIZE = 4096
RANKS, ROWS = (128, 1024), (1, 16, 4096)
SPECS = {
    "two sites": ChainSpec((64, 64), (64, 64), 16),
    "three sites": ChainSpec((16, 16, 16), (16, 16, 16), 8),
}

Product = Callable[..., Tensor]


def tests(seconds: float) -> dict[str, Any]:
    """Outcomes of the tests marked ``cuda``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-q", f"--junitxml={report}"]
        try:
            code = subprocess.run([*command, "tests"], check=False, cwd=ROOT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return {"exit": None, "ended_after_seconds": seconds}
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    return {"exit": code, **counts, "seconds": float(suite.attrib["time"])}


def low_rank_cells(device: str, size: int, ranks: tuple[int, ...], rows: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Cells of interpolative products: the fused product, torch's two products, and the dense product."""
    for rank, count, dtype, training in itertools.product(ranks, rows, (torch.bfloat16, torch.float32), (False, True)):
        x, right, left, dense = (
            torch.randn(shape, device=device, dtype=dtype)
            for shape in ((count, size), (rank, size), (size - rank, rank), (size, size))
        )
        place = torch.randperm(size).to(device, torch.int32)

        def by_torch(x: Tensor, right: Tensor, left: Tensor, place: Tensor = place) -> Tensor:
            kept = F.linear(x, right)
            return torch.cat([kept, F.linear(kept, left)], dim=-1).index_select(-1, place)

        def fused(x: Tensor, right: Tensor, left: Tensor, place: Tensor = place) -> Tensor:
            return low_rank_product(x, right, left, place)

        factors = [x, right, left]
        calls = {"fused": (fused, factors), "torch": (by_torch, factors), "dense": (F.linear, [x, dense])}
        label = {"form": "interpolative", "rank": rank, "size": size}
        yield {**label, **_cell(calls, count, dtype, training, device, by_torch)}


def chain_cells(device: str, specs: dict[str, ChainSpec], rows: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Cells of chains: the fused sweep, the plan without it, and the dense product."""
    for (name, spec), count, dtype, training in itertools.product(
        specs.items(), rows, (torch.bfloat16, torch.float32), (False, True)
    ):
        setting, mode = Setting(str(dtype).removeprefix("torch."), device), "training" if training else "inference"
        machine = Machine(element_bytes=setting.element_bytes)
        conditions = Conditions(count, mode, "compact", setting, machine)
        fused = next(
            Program.of(variant, KERNELS["fused"], machine)
            for candidate in candidates(spec, count)
            if runs(KERNELS["fused"], candidate.schedule, conditions) and not candidate.schedule.merges
            for variant in KERNELS["fused"].variants(candidate, conditions)
        )
        chosen = plan(spec, count, mode=mode, setting=setting, kernels=list(KERNELS.values()))
        planned = Program.of(chosen.chosen, KERNELS[chosen.kernel], machine)
        x = torch.randn(count, spec.in_features, device=device, dtype=dtype)
        cores = [torch.randn(shape, device=device, dtype=dtype) for shape in spec.core_shapes]
        dense = torch.randn(spec.shape, device=device, dtype=dtype)

        def by_plan(x: Tensor, *cores: Tensor, program: Program = planned) -> Tensor:
            return program(x, cores)

        def by_fused(x: Tensor, *cores: Tensor, program: Program = fused) -> Tensor:
            return program(x, cores)

        calls = {"fused": (by_fused, [x, *cores]), "torch": (by_plan, [x, *cores]), "dense": (F.linear, [x, dense])}
        label = {"form": name, "spec": spec.as_dict(), "plan": str(chosen.chosen)}
        yield {**label, **_cell(calls, count, dtype, training, device, by_plan)}


def _cell(
    calls: dict[str, tuple[Product, list[Tensor]]],
    rows: int,
    dtype: torch.dtype,
    training: bool,
    device: str,
    reference: Product,
) -> dict[str, Any]:
    """Median seconds of every call, and the largest error of the fused one relative to the largest entry."""
    steps = [_step(product, tensors, training) for product, tensors in calls.values()]
    with torch.set_grad_enabled(training):
        seconds = interleaved(steps, device, budget=_ROUNDS)
    with torch.no_grad():
        product, tensors = calls["fused"]
        exact = reference(*(tensor.double() for tensor in tensors))
        error = (product(*tensors).double() - exact).abs().max() / exact.abs().max()
    label = {"rows": rows, "dtype": str(dtype).removeprefix("torch."), "training": training}
    return {**label, "seconds": dict(zip(calls, seconds, strict=True)), "error": error.item()}


def _step(product: Product, tensors: list[Tensor], training: bool) -> Callable[[], object]:
    if not training:
        return lambda: product(*tensors)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def step() -> object:
        y = product(*leaves)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return step


def main() -> None:
    """Check, measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file to write")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs an NVIDIA GPU that torch can use, and torch sees none; run it on a machine with one")
    if not runs_triton("cuda"):
        sys.exit("gpu-check needs triton, and TRITON_INTERPRET must not be set; install it with pip install triton")
    import triton

    began = time.monotonic()
    outcomes = tests(_TESTS)
    cells: list[dict[str, Any]] = []
    complete = True
    for cell in itertools.chain(low_rank_cells("cuda", SIZE, RANKS, ROWS), chain_cells("cuda", SPECS, ROWS)):
        cells.append(cell)
        if time.monotonic() - began > _CELLS:
            complete = False
            break
    record = {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "triton": triton.__version__,
        "provenance": provenance(),
        "tests": outcomes,
        "complete": complete,
        "cells": cells,
        "seconds": time.monotonic() - began,
    }
    write_bytes(out, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{out}: {len(cells)} cells in {record['seconds']:.0f} s, tests {outcomes}")
    sys.exit(0 if outcomes["exit"] == 0 else 1)


if __name__ == "__main__":
    main()
