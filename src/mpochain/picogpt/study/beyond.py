"""What the paper did not try, at each of its sizes: other shapes, and a start from the trained dense weights."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["beyond"]

Row = Mapping[str, Any]

_BONDS = (4, 8, 16, 32)


def beyond(rows: Sequence[Row]) -> list[str]:
    """A sentence for each size and question whose rows are there; only runs of the same seeds are compared.

    Args:
        rows: see :func:`mpochain.picogpt.study.rows.rows_of`.
    """
    lines = []
    for bond in _BONDS:
        paper = _row(rows, f"χ={bond}")
        rivals = [row for row in rows if row["row"].endswith(f" as χ={bond}") and _seeds(row, paper)]
        narrow = [row for row in rivals if row["row"].startswith("dense")]
        shapes = [row for row in rivals if row not in narrow]
        if paper is not None and shapes:
            lines.append(_shapes(bond, paper, shapes, max(rows, key=_spread)))
        if paper is not None and narrow:
            lines += [f"Beside χ={bond}, no chain at all: {_shown(row, paper)}." for row in narrow]
        tuned = next((row for row in rows if row["row"].startswith(f"χ={bond}, TT-SVD and")), None)
        if tuned is not None:
            brief = _row(rows, f"χ={bond}, {tuned['steps']} steps")
            compared = [_against(tuned, row) for row in (brief, paper) if row is not None and _seeds(tuned, row)]
            if compared:
                lines.append(f"{tuned['row']}, {tuned['accuracy']:.1%}, {' and '.join(compared)}.")
        fitted = [row for row in rows if _is_tuned(row) and row["bond"] == bond]
        if fitted:
            lines.append(_fitted(bond, fitted, tuned, paper))
        taught = [row for row in rows if row["distilled"] and row["bond"] == bond]
        if taught:
            lines.append(_taught(bond, [row for row in taught if row["by_seed"].keys() == taught[0]["by_seed"].keys()]))
    return lines


def _is_tuned(row: Row) -> bool:
    """Whether it was cut from trained weights by what the layers see, and tuned in few steps."""
    return row["start"] == "calibrated" and row["steps"] > 0 and not row["distilled"]


def _shapes(bond: int, paper: Row, rivals: Sequence[Row], widest: Row) -> str:
    points = {_name(row): 100 * _gain(row, paper) for row in rivals}
    own_spread = _spread(paper)
    # Few seeds may agree by chance, and one says nothing; the row whose seeds differ most is the judge.
    whose = "their seeds" if widest is paper else f"the seeds of {widest['row']}"
    doubt = f" (by less than {whose} differ)"
    better = [f"{name}{'' if gain > _spread(widest) else doubt}" for name, gain in points.items() if gain > 0]
    macs = paper["fewest_macs_per_token"]
    cheaper = [_name(row) for row in rivals if row["fewest_macs_per_token"] < macs]
    shown = "; ".join(_shown(row, paper) for row in rivals)
    own = f"{paper['parameters']:,} parameters at {macs:,} MACs, the fewest, per token"
    differ = f"; their seeds differ by {own_spread:.2f} points" if own_spread else ""
    return (
        f"At the size of χ={bond} the paper's shapes ({own}{differ}) are beaten in accuracy by "
        f"{' and '.join(better) or 'none'} and in multiply-adds by {' and '.join(cheaper) or 'none'}: {shown}."
    )


def _spread(row: Row) -> float:
    """Points between the least and the most accurate seed; 0 for one seed."""
    seeds = row["by_seed"].values()
    return 100 * (max(seeds) - min(seeds))


def _name(row: Row) -> str:
    return str(row["row"]).partition(" as ")[0]


def _shown(row: Row, paper: Row) -> str:
    return (
        f"{_name(row)} {100 * _gain(row, paper):+.1f} points with {row['parameters']:,} parameters at "
        f"{row['fewest_macs_per_token']:,} MACs"
    )


def _against(tuned: Row, other: Row) -> str:
    gain = _gain(tuned, other)
    verdict = "is better" if gain > 0 else "is no better"
    return f"{verdict} than {other['steps']:,} steps from a random start ({100 * gain:+.1f} points)"


def _fitted(bond: int, rows: Sequence[Row], by_weights: Row | None, paper: Row | None) -> str:
    """What few steps make of all that was cut from the dense weights under what its layers see, the best first."""
    best_first = sorted(rows, key=lambda row: -row["accuracy"])
    shown = "; ".join(
        f"{row['row'].partition(', calibrated')[0]} {row['accuracy']:.1%} with {row['parameters']:,} parameters at "
        f"{row['fewest_macs_per_token']:,} MACs"
        for row in best_first
    )
    beside = f" ({by_weights['row']}: {by_weights['accuracy']:.1%})" if by_weights is not None else ""
    steps = " or ".join(f"{count:,}" for count in sorted({row["steps"] for row in rows}))
    first = ""
    if paper is not None and _seeds(best_first[0], paper):
        first = f" The first {_against(best_first[0], paper)} of the paper's shapes."
    return (
        f"At the size of χ={bond}, cut from the dense weights by what its layers see, and {steps} steps: "
        f"{shown}{beside}.{first}"
    )


def _taught(bond: int, rows: Sequence[Row]) -> str:
    """All that a dense model taught at one size, the best first."""
    shown = [
        f"{row['row'].removesuffix(', distilled')} {row['accuracy']:.1%}, {row['kept']:.1%} of dense, with "
        f"{row['parameters']:,} parameters"
        for row in sorted(rows, key=lambda row: -row["accuracy"])
    ]
    steps = " or ".join(f"{count:,}" for count in sorted({row["steps"] for row in rows}))
    return f"At the size of χ={bond}, taught by the dense model for {steps} steps beside its own: {'; '.join(shown)}."


def _gain(row: Row, other: Row) -> float:
    """By how much accuracy is greater, over the seeds that both have."""
    return statistics.fmean(row["by_seed"][seed] - other["by_seed"][seed] for seed in _seeds(row, other))


def _seeds(row: Row, other: Row | None) -> set[int]:
    """Those that both have; an interrupted study may have none."""
    return set() if other is None else row["by_seed"].keys() & other["by_seed"].keys()


def _row(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row["row"] == name), None)
