"""Comparison of shapes and starts absent from the paper, at each of its sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.picogpt.study.rows import paper_row

__all__ = ["BONDS", "accuracy_gain", "beyond", "is_rival"]

Row = Mapping[str, Any]

# The bonds of the paper.
BONDS = (4, 8, 16, 32)


def beyond(rows: Sequence[Row]) -> list[str]:
    """Sentences that compare designs and starts at each size; only runs of the same seeds are compared.

    Args:
        rows: see :func:`studies.picogpt.study.rows.rows_of`.
    """
    lines = []
    for bond in BONDS:
        of_size = [row for row in rows if row["bond"] == bond]
        paper = paper_row(rows, bond)
        rivals = [row for row in of_size if is_rival(row) and _seeds(row, paper)]
        narrow = [row for row in rivals if row["design"].family == "dense"]
        chains = [row for row in rivals if row["design"].family != "dense"]
        if paper is not None and chains:
            lines.append(_shapes(bond, paper, chains, max(rows, key=_spread)))
        if paper is not None and narrow:
            lines += [f"At the size of χ={bond}, without chains: {_shown(row, paper)}." for row in narrow]
        by_weights = _finetuned(of_size, "tt_svd")
        if by_weights is not None:
            brief = _finetuned(of_size, "random", by_weights["steps"])
            references = [row for row in (brief, paper) if row is not None and _seeds(by_weights, row)]
            if references:
                verdicts = " and ".join(_against(by_weights, row) for row in references)
                lines.append(f"{by_weights['row']}, {by_weights['accuracy']:.1%}, {verdicts}.")
        calibrated = [row for row in of_size if row["start"] == "calibrated" and row["kind"] == "finetuned"]
        if calibrated:
            lines.append(_calibrated(bond, calibrated, by_weights, paper))
        taught = [row for row in of_size if row["distilled"]]
        if taught:
            lines.append(_taught(bond, [row for row in taught if row["by_seed"].keys() == taught[0]["by_seed"].keys()]))
    return lines


def is_rival(row: Row) -> bool:
    """Whether the row is a control trained like the paper's chains: from a random start, only on the text."""
    plain = row["start"] == "random" and row["kind"] == "trained" and not row["distilled"]
    return plain and row["design"].family != "paper"


def _finetuned(rows: Sequence[Row], start: str, steps: int | None = None) -> Row | None:
    """Row of the paper's chains finetuned from a start, with any number of steps or with ``steps``."""
    for row in rows:
        is_wanted = row["start"] == start and row["kind"] == "finetuned" and row["design"].family == "paper"
        if is_wanted and steps in (None, row["steps"]):
            return row
    return None


def _shapes(bond: int, paper: Row, rivals: Sequence[Row], least_certain: Row) -> str:
    points = {row["design"].shape: 100 * accuracy_gain(row, paper) for row in rivals}
    own_spread = _spread(paper)
    # Few seeds may agree by chance, and a single seed has no spread, so the largest spread of any row is the threshold.
    whose = "their seeds" if least_certain is paper else f"the seeds of {least_certain['row']}"
    doubt = f" (by less than the spread of {whose})"
    better = [f"{shape}{'' if gain > _spread(least_certain) else doubt}" for shape, gain in points.items() if gain > 0]
    macs = paper["fewest_macs_per_token"]
    cheaper = [row["design"].shape for row in rivals if row["fewest_macs_per_token"] < macs]
    shown = "; ".join(_shown(row, paper) for row in rivals)
    own = f"{paper['parameters']:,} parameters, at least {macs:,} MACs per token"
    differ = f"; their seeds differ by {own_spread:.2f} points" if own_spread else ""
    return (
        f"At the size of χ={bond}, higher accuracy than the paper's shapes ({own}{differ}): "
        f"{' and '.join(better) or 'none'}; fewer multiply-adds: {' and '.join(cheaper) or 'none'}. In detail: {shown}."
    )


def _spread(row: Row) -> float:
    """Percentage points between the least and the most accurate seed; 0 for one seed."""
    seeds = row["by_seed"].values()
    return 100 * (max(seeds) - min(seeds))


def _shown(row: Row, paper: Row) -> str:
    return (
        f"{row['design'].shape} {100 * accuracy_gain(row, paper):+.1f} points with {row['parameters']:,} parameters at "
        f"{row['fewest_macs_per_token']:,} MACs"
    )


def _against(row: Row, other: Row) -> str:
    gain = accuracy_gain(row, other)
    verdict = "is better" if gain > 0 else "is no better"
    return f"{verdict} than {other['steps']:,} steps from a random start ({100 * gain:+.1f} points)"


def _calibrated(bond: int, rows: Sequence[Row], by_weights: Row | None, paper: Row | None) -> str:
    """Sentence on the accuracy of designs fitted to inputs and gradients and finetuned, best first."""
    best_first = sorted(rows, key=lambda row: -row["accuracy"])
    shown = "; ".join(
        f"{row['design']} {row['accuracy']:.1%} with {row['parameters']:,} parameters at "
        f"{row['fewest_macs_per_token']:,} MACs"
        for row in best_first
    )
    beside = f" ({by_weights['row']}: {by_weights['accuracy']:.1%})" if by_weights is not None else ""
    first = ""
    if paper is not None and _seeds(best_first[0], paper):
        first = f" The first {_against(best_first[0], paper)} with the paper's shapes."
    return (
        f"At the size of χ={bond}, decomposed with calibration data and finetuned for {_steps(rows)} steps: "
        f"{shown}{beside}.{first}"
    )


def _taught(bond: int, rows: Sequence[Row]) -> str:
    """Sentence on the accuracy of distilled models of one size, best first."""
    shown = "; ".join(
        f"{row['model']} {row['accuracy']:.1%}, {row['kept']:.1%} of dense, with {row['parameters']:,} parameters"
        for row in sorted(rows, key=lambda row: -row["accuracy"])
    )
    return f"At the size of χ={bond}, distilled from the dense model for {_steps(rows)} steps: {shown}."


def _steps(rows: Sequence[Row]) -> str:
    return " or ".join(f"{count:,}" for count in sorted({row["steps"] for row in rows}))


def accuracy_gain(row: Row, other: Row) -> float:
    """Mean difference in accuracy over common seeds."""
    return statistics.fmean(row["by_seed"][seed] - other["by_seed"][seed] for seed in _seeds(row, other))


def _seeds(row: Row, other: Row | None) -> set[int]:
    """Common seeds of two rows; empty if an interrupted study lacks the other row."""
    return set() if other is None else row["by_seed"].keys() & other["by_seed"].keys()
