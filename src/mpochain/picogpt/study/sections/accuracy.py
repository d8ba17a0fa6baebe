"""Accuracy against what it costs: one line of a figure for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpochain.report.figures import Series

__all__ = ["accuracy_series"]

# Several shapes of one size, not one shape of several.
_UNJOINED = "all shapes, distilled"
# As many as there are marks that can be told apart.
_KINDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "dense, narrow ones too": lambda row: row["design"].family == "dense" and not row["distilled"],
    "chains": lambda row: _starts(row, "paper", "random") and not _briefly(row),
    "chains, TT-SVD and few steps": lambda row: _starts(row, "paper", "tt_svd") and _briefly(row),
    "chains, calibrated and few steps": lambda row: _starts(row, "paper", "calibrated") and _briefly(row),
    "low rank": lambda row: _starts(row, "low rank", "random"),
    "low rank, calibrated and few steps": lambda row: _starts(row, "low rank", "calibrated") and _briefly(row),
    "skewed chains": lambda row: _starts(row, "skewed", "random"),
    _UNJOINED: lambda row: row["distilled"],
}


def _starts(row: Mapping[str, Any], family: str, start: str) -> bool:
    return bool(row["design"].family == family and row["start"] == start)


def _briefly(row: Mapping[str, Any]) -> bool:
    return row["row"].endswith(" steps")


def accuracy_series(rows: Sequence[Mapping[str, Any]], cost: str) -> list[Series]:
    """The accuracy of rows over one of their fields, with the least and greatest of their seeds.

    Kinds of which there are none, and rows without the field, are left out; so are few steps of skewed chains and from
    a random start, and what was not trained at all, which would leave all others a fifth of the figure.

    Args:
        rows: see :func:`mpochain.picogpt.study.rows.rows_of`.
        cost: the field.
    """
    series = []
    for label, keep in _KINDS.items():
        kept = sorted((row for row in rows if keep(row) and row.get(cost) is not None), key=lambda row: row[cost])
        if kept:
            ends = [(min(row["by_seed"].values()), max(row["by_seed"].values())) for row in kept]
            x, y = [row[cost] for row in kept], [row["accuracy"] for row in kept]
            series.append(Series(label, x, y, line=label != _UNJOINED, ends=ends))
    return series
