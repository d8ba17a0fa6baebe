"""Summary of a frontier in words: the best method within each size, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["other_text", "summary"]

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


def other_text(
    rows: Sequence[Mapping[str, Any]], first: str, other: str, names: tuple[str, str], calibrated: Mapping[str, bool]
) -> tuple[str, ...]:
    """How much more the models lose on a text of another kind, as sentences; none without a model that is worse.

    Args:
        rows: one per model, with ``method`` and its perplexity over that of the dense model.
        first: key of that ratio on the first text.
        other: key of that ratio on the other text.
        names: names of both texts.
        calibrated: whether a method reads a calibration text, by the name of the method.

    Example:
        >>> rows = [{"method": "auto", "a": 1.1, "b": 1.3}, {"method": "rtn", "a": 1.2, "b": 1.5}]
        >>> for sentence in other_text(rows, "a", "b", ("wiki.txt", "plays.txt"), {"auto": True, "rtn": False}):
        ...     print(sentence)
        The excess of perplexity over dense is larger on plays.txt than on wiki.txt, by factors: auto 3.0; rtn 2.5.
        rtn reads no calibration text, so its factor is due to the texts alone; what others have more is due to ...
    """
    factors: dict[str, list[float]] = {}
    for row in rows:
        if row[first] > 1:
            factors.setdefault(row["method"], []).append((row[other] - 1) / (row[first] - 1))
    if not any(factor > 1 for values in factors.values() for factor in values):
        return ()
    ranges = []
    for method, values in factors.items():
        low, high = f"{min(values):.1f}", f"{max(values):.1f}"
        ranges.append(f"{method} {low}" + (f" to {high}" if high != low else ""))
    plain = [method for method in factors if not calibrated[method]]
    return (
        f"The excess of perplexity over dense is larger on {names[1]} than on {names[0]}, by factors: "
        f"{'; '.join(ranges)}.",
        *(
            [
                f"{_listed(plain)} reads no calibration text, so its factor is due to the texts alone; what others "
                "have more is due to their calibration."
            ]
            if len(plain) == 1 and len(factors) > 1
            else []
        ),
    )


def _named(row: Mapping[str, Any], limit: float, value: str) -> str:
    """A method with its value, and with its size where the method has no model of about the limit."""
    size = f" ({row['bits']:.2f} bits)" if row["bits"] < _ABOUT * limit else ""
    return f"{row['method']} {value}{size}"


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
