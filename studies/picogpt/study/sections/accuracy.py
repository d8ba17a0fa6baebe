"""Figure series of accuracy against a cost, one per kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpochain.report.figures import Series

__all__ = ["accuracy_series"]

# This series has several shapes of one size, so no line joins its points.
_UNJOINED = "all shapes, distilled"
# At most as many kinds as a figure has distinct markers.
_KINDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "dense, narrow ones too": lambda row: row["design"].family == "dense" and not row["distilled"],
    "chains": lambda row: _is(row, "paper", "random", "trained"),
    "chains, TT-SVD and few steps": lambda row: _is(row, "paper", "tt_svd", "finetuned"),
    "chains, calibrated and few steps": lambda row: _is(row, "paper", "calibrated", "finetuned"),
    "low rank": lambda row: _is(row, "low rank", "random", "trained"),
    "low rank, calibrated and few steps": lambda row: _is(row, "low rank", "calibrated", "finetuned"),
    "skewed chains": lambda row: _is(row, "skewed", "random", "trained"),
    _UNJOINED: lambda row: row["distilled"],
}


def _is(row: Mapping[str, Any], family: str, start: str, kind: str) -> bool:
    return (row["design"].family, row["start"], row["kind"]) == (family, start, kind)


def accuracy_series(rows: Sequence[Mapping[str, Any]], cost: str, *, named: bool = False) -> list[Series]:
    """Series of accuracy against a field of the rows, with the minimum and maximum accuracy over seeds.

    Kinds without rows, rows without the field, and skewed chains and random starts with few steps are left out; so are
    untrained rows, whose low accuracy would compress all others into a fifth of the figure.

    Args:
        rows: see :func:`studies.picogpt.study.rows.rows_of`.
        cost: name of the field on the horizontal axis.
        named: whether the χ whose size a row has is written beside its point.
    """
    series = []
    for label, keep in _KINDS.items():
        kept = sorted((row for row in rows if keep(row) and row.get(cost) is not None), key=lambda row: row[cost])
        if kept:
            ends = [(min(row["by_seed"].values()), max(row["by_seed"].values())) for row in kept]
            x, y = [row[cost] for row in kept], [row["accuracy"] for row in kept]
            names = [str(row["bond"] or "") for row in kept] if named else None
            series.append(Series(label, x, y, line=label != _UNJOINED, ends=ends, names=names))
    return series
