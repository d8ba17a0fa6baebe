"""Table of the default plan beside the best of all plans, on the benchmark pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ratios import Record, geometric_mean, median

from mpochain.report import Column, markdown

LONG_SECONDS = 1e-4


def over_plans(record: Record, name: str = "default") -> float:
    """Time of a plan over that of the best of all plans."""
    return record["timings"][name]["median"] / record["timings"]["best"]["median"]


def over_all(record: Record) -> float:
    """Time of the default plan over that of the best of all plans and the dense layer."""
    best = min(record["timings"][name]["median"] for name in ("best", "dense"))
    return record["timings"]["default"]["median"] / best


def is_long(record: Record) -> bool:
    """Whether the best plan takes over 100 µs."""
    return (median(record, "best") or 0.0) > LONG_SECONDS


def regret(records: Iterable[Record]) -> str:
    """A row for each kind of execution, of all cells and of the long ones."""
    columns = [Column("execution", "execution"), Column("cells", "cells"), Column("count", "number", ",")]
    kinds: dict[str, tuple[str, Callable[[Record], float]]] = {
        "predicted": ("prediction alone", lambda record: over_plans(record, "predicted")),
        "default": ("after ten calls", over_plans),
        "all": ("after ten calls, over dense too", over_all),
    }
    for key, (title, _) in kinds.items():
        columns += [Column(f"{key} mean", f"{title}: mean", ".3f"), Column(f"{key} worst", "worst", ".2f")]
    rows = []
    records = list(records)
    for memory in ("compact", "fast"):
        for label, chosen in (("all", lambda _: True), ("over 100 µs", is_long)):
            cells = [record for record in records if record["memory"] == memory and chosen(record)]
            if not cells:
                continue
            row = {"execution": memory, "cells": label, "count": len(cells)}
            for key, (_, measure) in kinds.items():
                values = [measure(record) for record in cells]
                row |= {f"{key} mean": geometric_mean(values), f"{key} worst": max(values)}
            rows.append(row)
    return markdown(columns, rows)
