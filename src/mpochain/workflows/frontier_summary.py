"""Summary of a frontier in words: the best method within each size, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["summary"]

# A model below this share of the limit has its size beside it.
_ABOUT = 0.97


def summary(rows: Sequence[Mapping[str, Any]], key: str, measure: str, form: str = "#.4g") -> tuple[str, ...]:
    """Which method is the best within each limit of bits, as sentences; no sentence for a single method.

    Within a limit, a method is judged by its best model among those with this limit or a smaller one, since uniform
    bits have only a few sizes. Values that are printed alike are equal.

    Args:
        rows: one per model, with ``method``, ``limit`` and ``bits`` (per weight) and a measured value.
        key: key of the measured value; less is better.
        measure: name of the value.
        form: format of the value.

    Example:
        >>> rows = [{"method": "auto", "limit": 4.0, "bits": 3.99, "loss": 1.5},
        ...         {"method": "rtn", "limit": 4.0, "bits": 3.75, "loss": 1.6},
        ...         {"method": "auto", "limit": 2.0, "bits": 2.0, "loss": 2.5}]
        >>> for sentence in summary(rows, "loss", "loss"):
        ...     print(sentence)
        Lowest loss within each limit: auto at 4 bits.
        The best method and the next one: at 4 bits auto 1.500 and rtn 1.600 (3.75 bits).
        Only auto has a model within 2 bits (2.500).
    """
    if len({row["method"] for row in rows}) < 2:
        return ()
    wins: dict[str, list[str]] = {}
    alone: dict[str, list[str]] = {}
    pairs = []
    for limit in sorted({row["limit"] for row in rows}, reverse=True):
        best: dict[str, Mapping[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row[key]):
            if row["limit"] <= limit:
                best.setdefault(row["method"], row)
        first, *others = best.values()
        if not others:
            alone.setdefault(first["method"], []).append(f"{limit:g} bits ({first[key]:{form}})")
            continue
        winners = [row["method"] for row in best.values() if format(row[key], form) == format(first[key], form)]
        wins.setdefault(" and ".join(winners), []).append(f"{limit:g}")
        named = [_named(row, limit, format(row[key], form)) for row in (first, others[0])]
        pairs.append(f"at {limit:g} bits {' and '.join(named)}")
    return (
        f"Lowest {measure} within each limit: "
        + "; ".join(f"{methods} at {_listed(limits)} bits" for methods, limits in wins.items())
        + ".",
        f"The best method and the next one: {'; '.join(pairs)}.",
        *(f"Only {method} has a model within {_listed(limits)}." for method, limits in alone.items()),
    )


def _named(row: Mapping[str, Any], limit: float, value: str) -> str:
    """A method with its value, and with its size where the method has no model of about the limit."""
    size = f" ({row['bits']:.2f} bits)" if row["bits"] < _ABOUT * limit else ""
    return f"{row['method']} {value}{size}"


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
