"""The study in a few sentences, at the head of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.picogpt.study.beyond import BONDS, accuracy_gain, is_rival
from studies.picogpt.study.rows import paper_row

__all__ = ["conclusion"]

Row = Mapping[str, Any]

_FAMILIES = {
    "low rank": "low rank of the same size",
    "skewed": "chains with one small site",
    "dense": "a narrower dense model of the same size",
}


def conclusion(rows: Sequence[Row]) -> list[str]:
    """Sentences on what chains gain and lose; empty if the runs that they compare are missing.

    Args:
        rows: see :func:`studies.picogpt.study.rows.rows_of`.
    """
    dense = paper_row(rows, None)
    if dense is None:
        return []
    lines = []
    for family, words in _FAMILIES.items():
        gains = {
            bond: accuracy_gain(row, paper)
            for bond in BONDS
            if (paper := paper_row(rows, bond)) is not None
            for row in rows
            if row["bond"] == bond and row["design"].family == family and is_rival(row)
        }
        if gains:
            shown = ", ".join(f"{-100 * value:+.1f} at χ={bond}" for bond, value in gains.items())
            lines.append(
                f"Against {words}, trained alike from random weights, chains in the paper's shapes have {shown} "
                "percentage points of accuracy."
            )
    taught = [row for row in rows if row["distilled"] and row["design"].family != "dense"]
    if taught:
        best = max(taught, key=lambda row: row["kept"])
        lines.append(
            f"With trained dense weights as the start and the dense model as teacher, {best['model']} keeps "
            f"{best['kept']:.1%} of the accuracy of the dense model ({dense['accuracy']:.1%}) with "
            f"{dense['parameters'] / best['parameters']:.1f} times fewer parameters."
        )
    return lines
