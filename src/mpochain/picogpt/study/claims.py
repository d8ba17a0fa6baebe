"""What arXiv 2603.28534 says, and whether it holds here: each claim with the number that decides it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpochain.picogpt.study.records import read_part

__all__ = ["PUBLISHED", "Published", "claims"]


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
_PUBLISHED_SHARE = 0.977
# Accuracies nearer than this are the same: the published ones are of 20 random batches.
_SAME = 0.01

Rows = Sequence[Mapping[str, Any]]


def claims(presets: Mapping[str, Rows], folder: Path) -> list[str]:
    """A sentence for each claim: holds, does not hold, or not testable with what has been run.

    Args:
        presets: the rows of the table of each preset that was run on the paper's corpus.
        folder: of the study, where the errors on trained weights are.
    """
    if not presets:
        return ["Not testable: the published figures are of Tiny Shakespeare, and no run is."]
    judged = {name: rows for name, rows in presets.items() if name != "quick"}
    return [
        _counts(presets),
        *(_accuracies(name, rows) for name, rows in judged.items()),
        *(_losses(name, rows) for name, rows in judged.items()),
        *(_share(name, rows) for name, rows in judged.items()),
        *(_densest(name, rows) for name, rows in judged.items()),
        _errors(folder),
        "What is published as accuracy per parameter is accuracy over the square root of the parameters, times the "
        "square root of ten. The tables here show accuracy/√N under that name.",
    ]


def _row(rows: Rows, name: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["row"] == name), None)


def _found(rows: Rows) -> dict[str, Mapping[str, Any]]:
    return {name: row for name in PUBLISHED if (row := _row(rows, name)) is not None}


def _counts(presets: Mapping[str, Rows]) -> str:
    found = {name: row["parameters"] for rows in presets.values() for name, row in _found(rows).items()}
    if not found:
        return "Parameter counts: not testable with these runs."
    shown = ", ".join(f"{name} {found[name]:,} ({PUBLISHED[name].parameters:,})" for name in PUBLISHED if name in found)
    if all(count == PUBLISHED[name].parameters for name, count in found.items()):
        return f"Parameter counts: hold, {shown}."
    remainder = PUBLISHED["dense"].parameters % 128
    return (
        f"Parameter counts: do not hold; true counts, published ones in brackets: {shown}. At width 128 every tensor "
        "of the dense architecture has a multiple of 128 entries, so the total must be one; the published "
        f"{PUBLISHED['dense'].parameters:,} is {remainder} more than one."
    )


def _accuracies(name: str, rows: Rows) -> str:
    found = _found(rows)
    shown = "; ".join(
        f"{row} {each['accuracy']:.1%} (published {PUBLISHED[row].accuracy:.1%})" for row, each in found.items()
    )
    if not found:
        return f"Accuracies, {name} settings: not testable with these runs."
    short = [row for row, each in found.items() if each["accuracy"] < PUBLISHED[row].accuracy - _SAME]
    verdict = f"not reached by {', '.join(short)}" if short else "all reached"
    if name == "paper":
        verdict = f"the published settings do {'not ' if short else ''}give the published accuracies"
    return (
        f"Accuracies, {name} settings: {verdict}; {shown}. Published ones are of 20 random batches, these of the whole "
        "validation split."
    )


def _losses(name: str, rows: Rows) -> str:
    claim = f"χ=16 and χ=32 have no more validation loss than dense, {name} settings"
    found = {row: each["loss"] for row, each in _found(rows).items() if row in ("dense", "χ=16", "χ=32")}
    if len(found) < 3:
        return f"{claim}: not testable with these runs."
    shown = ", ".join(f"{row} {loss:.3f} (published {PUBLISHED[row].loss:.3f})" for row, loss in found.items())
    verdict = "holds" if max(found["χ=16"], found["χ=32"]) <= found["dense"] else "does not hold"
    return f"{claim}: {verdict}; {shown}."


def _share(name: str, rows: Rows) -> str:
    claim = f"χ=16 keeps {_PUBLISHED_SHARE:.1%} of the dense accuracy, {name} settings"
    chain = _row(rows, "χ=16")
    if chain is None or chain["kept"] is None:
        return f"{claim}: not testable with these runs."
    verdict = "holds" if chain["kept"] >= _PUBLISHED_SHARE else "does not hold"
    taught = [row for row in rows if row["row"].startswith("χ=16, ") and row["row"].endswith(", distilled")]
    best = max(taught, key=lambda row: row["kept"], default=None)
    also = f"; taught by the dense model ({best['row']}) {best['kept']:.2%}" if best is not None else ""
    return f"{claim}: {verdict}, {chain['kept']:.2%}{also}."


def _densest(name: str, rows: Rows) -> str:
    claim = f"χ=8 has the most accuracy per root of parameters, {name} settings"
    found = _found(rows)
    if len(found) < len(PUBLISHED):
        return f"{claim}: not testable with these runs."
    best = max(found, key=lambda row: found[row]["per_root"])
    of_published = {row: PUBLISHED[row].accuracy / math.sqrt(each["parameters"]) for row, each in found.items()}
    again = max(of_published, key=of_published.__getitem__)
    return (
        f"{claim}: {'holds' if best == 'χ=8' else 'does not hold'}; the most has {best}, "
        f"{found[best]['per_root']:.2e}, and χ=8 has {found['χ=8']['per_root']:.2e}. The published accuracies over the "
        f"true counts give {of_published[again]:.2e} to {again}, the most, and {of_published['χ=8']:.2e} to χ=8."
    )


def _errors(folder: Path) -> str:
    claim = f"An error of {_PUBLISHED_ERROR} for a random 128x128 matrix at χ=4"
    # Not of the quick preset, whose weights are hardly trained.
    for preset in ("best", "paper"):
        file = folder / preset / "reconstruction.json"
        if file.exists():
            part, _ = read_part(file, "reconstruction")
            chosen = [r for r in part["layers"] if r["shape"] == [128, 128] and r["sites"] == 2 and r["bond"] == 4]
            if chosen:
                trained = sum(r["error"] for r in chosen) / len(chosen)
                random = chosen[0]["random"]
                verdict = "holds" if abs(random - _PUBLISHED_ERROR) < 0.05 else "does not hold"
                return (
                    f"{claim}: {verdict}, it is {random:.3f}; trained weights, {preset} settings, have {trained:.3f}."
                )
    return f"{claim}: not testable with these runs."
