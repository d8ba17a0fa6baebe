"""What arXiv 2603.28534 says, and whether it holds here: each claim with the number that decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpochain.picogpt.study.records import read_part

__all__ = ["PUBLISHED", "Published", "beyond", "claims"]


@dataclass(frozen=True)
class Published:
    """A row of the paper's table."""

    parameters: int
    loss: float
    accuracy: float


PUBLISHED = {
    "dense": Published(1_020_224, 1.860, 0.528),
    "χ=4": Published(78_336, 2.220, 0.368),
    "χ=8": Published(110_592, 1.950, 0.468),
    "χ=16": Published(191_872, 1.850, 0.516),
    "χ=32": Published(408_832, 1.850, 0.524),
}

# Published for a "random" 128x128 matrix at χ=4.
_PUBLISHED_ERROR = 0.395

Rows = Sequence[Mapping[str, Any]]


def claims(presets: Mapping[str, Rows], folder: Path) -> list[str]:
    """A sentence for each claim: holds, does not hold, or not testable with what has been run.

    Args:
        presets: the rows of the table of each preset that was run.
        folder: of the study, where the errors on trained weights are.
    """
    return [
        _counts(presets),
        *(_accuracies(name, rows) for name, rows in presets.items() if name != "quick"),
        *(_share(name, rows) for name, rows in presets.items() if name != "quick"),
        *(_densest(name, rows) for name, rows in presets.items() if name != "quick"),
        _errors(folder),
        "What is published as accuracy per parameter is accuracy over the square root of the parameters, times the "
        "square root of ten. The tables here show accuracy/√N under that name.",
    ]


def beyond(rows: Rows) -> list[str]:
    """What the paper did not try, at each of its sizes: other shapes, and a start from the trained dense weights."""
    lines = []
    for bond in (4, 8, 16, 32):
        paper = _row(rows, f"χ={bond}")
        rivals = [row for row in rows if row["row"].endswith(f" as χ={bond}")]
        if paper is not None and rivals:
            cheaper = [row for row in rivals if row["macs_per_token"] < paper["macs_per_token"]]
            best = max(rivals, key=lambda row: row["accuracy"])
            wins = [
                *(["accuracy"] if best["accuracy"] > paper["accuracy"] else []),
                *(["multiply-adds"] if cheaper else []),
            ]
            shown = "; ".join(f"{row['row'].removesuffix(f' as χ={bond}')} {_quality(row)}" for row in rivals)
            verdict = f"beaten in {' and in '.join(wins)}" if wins else "not beaten"
            lines.append(f"At the size of χ={bond} the paper's shapes, {_quality(paper)}, are {verdict}: {shown}.")
        tuned = next((row for row in rows if row["row"].startswith(f"χ={bond}, TT-SVD and")), None)
        if paper is not None and tuned is not None:
            verdict = "beats" if tuned["accuracy"] > paper["accuracy"] else "does not beat"
            lines.append(
                f"{tuned['row']} {verdict} χ={bond} from a random start: {tuned['accuracy']:.1%} against "
                f"{paper['accuracy']:.1%}."
            )
    return lines


def _quality(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.1%} at {row['macs_per_token']:,} MACs/token"


def _row(rows: Rows, name: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["row"] == name), None)


def _counts(presets: Mapping[str, Rows]) -> str:
    found = {row["row"]: row["parameters"] for rows in presets.values() for row in rows if row["row"] in PUBLISHED}
    if not found:
        return "Parameter counts: not testable with these runs."
    shown = ", ".join(f"{name} {count:,} ({PUBLISHED[name].parameters:,})" for name, count in found.items())
    if all(count == PUBLISHED[name].parameters for name, count in found.items()):
        return f"Parameter counts: hold, {shown}."
    remainder = PUBLISHED["dense"].parameters % 128
    return (
        f"Parameter counts: do not hold; true counts, published ones in brackets: {shown}. At width 128 every tensor "
        "of the dense architecture has a multiple of 128 entries, so the total must be one; the published "
        f"{PUBLISHED['dense'].parameters:,} is {remainder} more than one."
    )


def _accuracies(name: str, rows: Rows) -> str:
    parts = []
    for row in ("dense", "χ=4", "χ=8", "χ=16", "χ=32"):
        found = _row(rows, row)
        if found is not None:
            reached = "reached" if found["accuracy"] >= PUBLISHED[row].accuracy else "not reached"
            parts.append(f"{row} {found['accuracy']:.1%} (published {PUBLISHED[row].accuracy:.1%}, {reached})")
    return f"Accuracies, {name} settings: {'; '.join(parts) if parts else 'not testable with these runs'}."


def _share(name: str, rows: Rows) -> str:
    dense, chain = _row(rows, "dense"), _row(rows, "χ=16")
    if dense is None or chain is None:
        return f"χ=16 keeps 97.7 % of the dense accuracy, {name} settings: not testable with these runs."
    share = chain["accuracy"] / dense["accuracy"]
    verdict = "holds" if share >= 0.977 else "does not hold"
    return f"χ=16 keeps 97.7 % of the dense accuracy, {name} settings: {verdict}, {share:.1%}."


def _densest(name: str, rows: Rows) -> str:
    found = {row: each["per_root"] for row in PUBLISHED if (each := _row(rows, row)) is not None}
    if len(found) < len(PUBLISHED):
        return f"χ=8 has the most accuracy per root of parameters, {name} settings: not testable with these runs."
    best = max(found, key=found.__getitem__)
    verdict = "holds" if best == "χ=8" else "does not hold"
    return f"χ=8 has the most accuracy per root of parameters, {name} settings: {verdict}, the most has {best}."


def _errors(folder: Path) -> str:
    # Not of the quick preset, whose weights are hardly trained.
    for preset in ("best", "paper"):
        file = folder / preset / "reconstruction.json"
        if file.exists():
            records, _ = read_part(file, "reconstruction")
            chosen = [r for r in records if r["shape"] == [128, 128] and r["sites"] == 2 and r["bond"] == 4]
            if chosen:
                trained = sum(r["error"] for r in chosen) / len(chosen)
                random = chosen[0]["random"]
                verdict = "holds" if abs(random - _PUBLISHED_ERROR) < 0.05 else "does not hold"
                return (
                    f"An error of {_PUBLISHED_ERROR} for a random 128x128 matrix at χ=4: {verdict}, it is "
                    f"{random:.3f}; trained weights, {preset} settings, have {trained:.3f}."
                )
    return f"An error of {_PUBLISHED_ERROR} for a random 128x128 matrix at χ=4: not testable with these runs."
