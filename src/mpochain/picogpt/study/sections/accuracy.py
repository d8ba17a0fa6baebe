"""Accuracy against what it costs: one line of a figure for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpochain.report.figures import Series

__all__ = ["accuracy_series"]

# Several shapes of one size, not one shape of several.
_UNJOINED = ("all chains, distilled", "low rank and narrow, distilled")
_KINDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "dense, narrow ones too": lambda row: row["design"].family == "dense" and not row["distilled"],
    "chains": lambda row: _chains(row, "random") and not _briefly(row),
    "chains, few steps": lambda row: _chains(row, "random") and _briefly(row),
    "chains, TT-SVD and few steps": lambda row: _chains(row, "tt_svd") and _briefly(row),
    "low rank": lambda row: row["design"].family == "low rank" and row["start"] == "random",
    "skewed chains": lambda row: row["design"].family == "skewed" and row["start"] == "random",
    _UNJOINED[0]: lambda row: row["distilled"] and row["design"].family in ("paper", "skewed"),
    _UNJOINED[1]: lambda row: row["distilled"] and row["design"].family in ("low rank", "dense"),
}


def _chains(row: Mapping[str, Any], start: str) -> bool:
    return bool(row["design"].family == "paper" and row["start"] == start)


def _briefly(row: Mapping[str, Any]) -> bool:
    return row["row"].endswith(" steps")


def accuracy_series(rows: Sequence[Mapping[str, Any]], cost: str) -> list[Series]:
    """The accuracy of rows over one of their fields, with the least and greatest of their seeds.

    Kinds of which there are none, and rows without the field, are left out.

    So are chains that were not trained at all, which would leave all others a fifth of the figure.

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
            series.append(Series(label, x, y, line=label not in _UNJOINED, ends=ends))
    return series
