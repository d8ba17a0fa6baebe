"""Measurement of one benchmark cell: warm-up, exclusion of peers that fail or are too slow, timing and recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
import results
import torch
from grid import Cell
from interleave import interleave
from torch import Tensor

from mpochain.planning import ContractionPlan

_LONGEST_CALL = 5.0
# A peer is excluded if its time at a smaller batch predicts that one call takes this long. Predictions reach only to
# batches _NEXT_BATCH times larger, because rebuilding the matrix takes as long for one row as for a hundred.
_HOPELESS_CALL = 2 * _LONGEST_CALL
_NEXT_BATCH = 16
_TOOK = "one call took"

Functions = dict[str, Callable[[int], Any]]


def skip_if_finished(benchmark, group: str, name: str) -> None:
    """Skip a cell that an interrupted run has recorded; without recording, as in the tests, nothing is skipped."""
    if benchmark.enabled and name in results.finished(group):
        pytest.skip("finished in an earlier run")


def rotating(cell: Cell, requires_grad: bool = False) -> list[Tensor]:
    """Return several inputs to rotate, so that a cell does not run entirely from cache."""
    shape = cell.batch, cell.spec.in_features
    count = max(2, min(8, (1 << 24) // (shape[0] * shape[1])))
    dtype = getattr(torch, cell.dtype)
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for _ in range(count)]


def hopeless(group: str, cell: Cell, names: Iterable[str]) -> dict[str, str]:
    """Return the peers that would take too long, predicted from fewer rows of the same chain, with the reasons."""
    reasons = {}
    for record in results.finished(group).values():
        growth = cell.batch / record["batch"]
        if growth <= 1 or (record["spec"], record["dtype"]) != (cell.spec.as_dict(), cell.dtype):
            continue
        for name in names:
            why, timing = record["missing"].get(name, ""), record["timings"].get(name)
            if why.startswith(_TOOK):
                reasons[name] = why
            elif timing and growth <= _NEXT_BATCH and timing["median"] * growth > _HOPELESS_CALL:
                reasons[name] = f"{_TOOK} {timing['median']:.1f} s at batch {record['batch']}"
    return reasons


def warm_up(
    functions: Functions,
    peers: Collection[str],
    batch: int,
    check: Callable[[str, Any], None] = lambda name, result: None,
    longest: float = _LONGEST_CALL,
) -> dict[str, str]:
    """Call every function once, remove the peers that fail or take too long from ``functions``, and return why.

    Args:
        functions: functions by name, called with 0.
        peers: names that may be removed; errors of others propagate.
        batch: number of rows per call, for the reason.
        check: called with the name and the result; its errors propagate.
        longest: longest allowed call of a peer, in seconds.
    """
    missing = {}
    for name in list(functions):
        began = time.perf_counter()
        try:
            result = functions[name](0)
        except Exception as error:
            if name not in peers:
                raise
            missing[name] = f"{type(error).__name__}: {error}"[:200]
            del functions[name]
            continue
        seconds = time.perf_counter() - began
        check(name, result)
        if name in peers and seconds > longest:
            missing[name] = f"{_TOOK} {seconds:.1f} s at batch {batch}"
            del functions[name]
    return missing


def chosen(plan: ContractionPlan) -> dict[str, Any]:
    """Fields of a plan that a record stores."""
    return {
        "chosen": str(plan.chosen),
        "rebuilds": plan.chosen.rebuilds,
        "macs": plan.macs,
        "dense_macs": plan.dense_macs,
        "predicted_seconds": plan.predicted_seconds,
    }


def finish(
    benchmark,
    group: str,
    cell: Cell,
    functions: Functions,
    peers: Collection[str],
    missing: dict[str, str],
    plans: dict[str, dict[str, Any]],
) -> None:
    """Time the remaining functions and record the cell."""
    enabled = benchmark.enabled
    if not enabled:
        broken = {name: why for name, why in missing.items() if "not installed" not in why}
        assert not broken, broken
    timings = interleave(functions, peers=peers, **({} if enabled else {"rounds": 1, "round_seconds": 0.0}))
    benchmark.group = f"{group}: {cell.name}"
    benchmark.extra_info.update(cell=cell.name, timings=timings, missing=missing)
    seconds = timings["compact"]["median"]
    benchmark.pedantic(functions["compact"], args=(0,), rounds=max(1, min(3, int(0.02 / seconds))))
    if enabled:
        record = {"cell": cell.name, "kind": cell.kind, "bond": cell.bond, "batch": cell.batch, "dtype": cell.dtype}
        record |= {"spec": cell.spec.as_dict(), "timings": timings, "plans": plans, "missing": missing}
        results.add(group, record)
