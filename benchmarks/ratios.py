"""Ratios of timings within one record, above 1 if the chain is faster."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

Record = dict[str, Any]

OWN = ("dense", "low rank", "predicted", "compact", "fast")
BY_AUTOGRAD = ("rebuild", "plain chain")


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Geometric mean of the values that are not None; None if there are none."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def median(record: Record, name: str | None) -> float | None:
    """Median seconds of one implementation; None if it was not measured."""
    timing = record["timings"].get(name)
    return timing["median"] if timing else None


def ratio(record: Record, slow: str | None, fast: str = "compact") -> float | None:
    """Ratio of two implementations' times; None if one was not measured."""
    a, b = median(record, slow), median(record, fast)
    return a / b if a and b else None


def fastest(record: Record, names: Collection[str]) -> str | None:
    """Name of the fastest measured implementation among ``names``; None if none was measured."""
    medians = {name: timing["median"] for name, timing in record["timings"].items() if name in names}
    return min(medians, key=medians.__getitem__) if medians else None


def best_peer(record: Record) -> str | None:
    """Name of the fastest other library in a forward record."""
    return fastest(record, record["timings"].keys() - OWN)


def over_best_peer(record: Record) -> float | None:
    """Ratio of the best peer's time to the compact chain's."""
    return ratio(record, best_peer(record))


def over_autograd(record: Record) -> float | None:
    """Ratio of the faster autograd baseline's time to the compact chain's."""
    return ratio(record, fastest(record, BY_AUTOGRAD))
