"""Ratios of timings within one record: above 1 where the chain is the faster one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

Record = dict[str, Any]

OWN = ("dense", "low rank", "predicted", "compact", "fast")
BY_AUTOGRAD = ("rebuild", "plain chain")


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None without any."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def median(record: Record, name: str | None) -> float | None:
    """Seconds of one implementation."""
    timing = record["timings"].get(name)
    return timing["median"] if timing else None


def ratio(record: Record, slow: str | None, fast: str = "compact") -> float | None:
    """Time of one implementation over that of another."""
    a, b = median(record, slow), median(record, fast)
    return a / b if a and b else None


def fastest(record: Record, names: Collection[str]) -> str | None:
    """The fastest of these that are in the record."""
    medians = {name: timing["median"] for name, timing in record["timings"].items() if name in names}
    return min(medians, key=medians.__getitem__) if medians else None


def best_peer(record: Record) -> str | None:
    """The fastest implementation of another library in a forward record."""
    return fastest(record, record["timings"].keys() - OWN)


def over_best_peer(record: Record) -> float | None:
    """Time of the best peer over that of the compact chain."""
    return ratio(record, best_peer(record))


def over_autograd(record: Record) -> float | None:
    """Time of the better way by autograd over that of the compact chain."""
    return ratio(record, fastest(record, BY_AUTOGRAD))
