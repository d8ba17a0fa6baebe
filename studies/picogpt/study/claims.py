"""Claims of arXiv 2603.28534, tested against the study's records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.picogpt.study.published import PUBLISHED, PUBLISHED_ERROR, PUBLISHED_SHARE
from studies.picogpt.study.records import read_part
from studies.picogpt.study.rows import paper_row

__all__ = ["claims"]

# Accuracies that differ by less count as equal: the published ones were measured on 20 random batches.
_SAME = 0.01

Row = Mapping[str, Any]
Rows = Sequence[Row]


def claims(presets: Mapping[str, Rows], folder: Path) -> list[str]:
    """One sentence per claim: it holds, does not hold, or cannot be tested with the runs so far.

    Args:
        presets: rows of each preset that was run on the paper's corpus, by name of the preset.
        folder: folder of the study, with the errors on trained weights.
    """
    if not presets:
        return ["Not testable: the published results are for Tiny Shakespeare, and no run uses it."]
    judged = {name: rows for name, rows in presets.items() if name != "quick"}
    return [
        _counts(presets),
        *(_accuracies(name, rows) for name, rows in judged.items()),
        *(_losses(name, rows) for name, rows in judged.items()),
        *(_share(name, rows) for name, rows in judged.items()),
        *(_densest(name, rows) for name, rows in judged.items()),
        _errors(folder),
        "The paper's accuracy per parameter is in fact accuracy divided by the square root of the number of parameters "
        "N, times the square root of ten. The tables here show accuracy/√N.",
    ]


def _paper_rows(rows: Rows) -> dict[int | None, Row]:
    """Rows of the published models that were run, by χ."""
    return {bond: row for bond in PUBLISHED if (row := paper_row(rows, bond)) is not None}


def _counts(presets: Mapping[str, Rows]) -> str:
    paper_rows = {bond: row for rows in presets.values() for bond, row in _paper_rows(rows).items()}
    if not paper_rows:
        return "Parameter counts: not testable with these runs."
    shown = ", ".join(
        f"{paper_rows[bond]['row']} {paper_rows[bond]['parameters']:,} ({PUBLISHED[bond].parameters:,})"
        for bond in PUBLISHED
        if bond in paper_rows
    )
    if all(row["parameters"] == PUBLISHED[bond].parameters for bond, row in paper_rows.items()):
        return f"Parameter counts: hold, {shown}."
    dense = PUBLISHED[None].parameters
    return (
        f"Parameter counts: do not hold; correct counts, with the published ones in brackets: {shown}. At width 128 "
        "every tensor of the dense architecture has a multiple of 128 entries, so the total must be a multiple of 128; "
        f"the published {dense:,} exceeds one by {dense % 128}."
    )


def _accuracies(name: str, rows: Rows) -> str:
    paper_rows = _paper_rows(rows)
    if not paper_rows:
        return f"Accuracies, {name} settings: not testable with these runs."
    shown = "; ".join(
        f"{row['row']} {row['accuracy']:.1%} (published {PUBLISHED[bond].accuracy:.1%})"
        for bond, row in paper_rows.items()
    )
    short = [row["row"] for bond, row in paper_rows.items() if row["accuracy"] < PUBLISHED[bond].accuracy - _SAME]
    verdict = f"not reached by {', '.join(short)}" if short else "all reached"
    if name == "paper":
        verdict = f"the published settings do {'not ' if short else ''}give the published accuracies"
    return (
        f"Accuracies, {name} settings: {verdict}; {shown}. The published ones were measured on 20 random batches, "
        "these on the whole validation split."
    )


def _losses(name: str, rows: Rows) -> str:
    claim = f"χ=16 and χ=32 have at most the validation loss of dense, {name} settings"
    compared = {bond: row for bond, row in _paper_rows(rows).items() if bond in (None, 16, 32)}
    if len(compared) < 3:
        return f"{claim}: not testable with these runs."
    shown = ", ".join(
        f"{row['row']} {row['loss']:.3f} (published {PUBLISHED[bond].loss:.3f})" for bond, row in compared.items()
    )
    verdict = "holds" if max(compared[16]["loss"], compared[32]["loss"]) <= compared[None]["loss"] else "does not hold"
    return f"{claim}: {verdict}; {shown}."


def _share(name: str, rows: Rows) -> str:
    claim = f"χ=16 keeps {PUBLISHED_SHARE:.1%} of the dense accuracy, {name} settings"
    chain = paper_row(rows, 16)
    if chain is None or chain["kept"] is None:
        return f"{claim}: not testable with these runs."
    verdict = "holds" if chain["kept"] >= PUBLISHED_SHARE else "does not hold"
    taught = [row for row in rows if row["distilled"] and row["bond"] == 16 and row["design"].family == "paper"]
    best = max(taught, key=lambda row: row["kept"], default=None)
    also = f"; distilled from the dense model ({best['row']}), {best['kept']:.2%}" if best is not None else ""
    return f"{claim}: {verdict}, {chain['kept']:.2%}{also}."


def _densest(name: str, rows: Rows) -> str:
    claim = f"χ=8 has the highest accuracy/√N, {name} settings"
    paper_rows = _paper_rows(rows)
    if len(paper_rows) < len(PUBLISHED):
        return f"{claim}: not testable with these runs."
    best = max(paper_rows, key=lambda bond: paper_rows[bond]["per_root"])
    published = {bond: PUBLISHED[bond].accuracy / math.sqrt(row["parameters"]) for bond, row in paper_rows.items()}
    best_published = max(published, key=published.__getitem__)
    return (
        f"{claim}: {'holds' if best == 8 else 'does not hold'}; {paper_rows[best]['row']} has the highest, "
        f"{paper_rows[best]['per_root']:.2e}, and χ=8 has {paper_rows[8]['per_root']:.2e}. With the published "
        f"accuracies and the correct counts, {paper_rows[best_published]['row']} has the highest, "
        f"{published[best_published]:.2e}, and χ=8 has {published[8]:.2e}."
    )


def _errors(folder: Path) -> str:
    claim = f"An error of {PUBLISHED_ERROR} for a random 128x128 matrix at χ=4"
    # The quick preset is left out because its weights are hardly trained.
    for preset in ("best", "paper"):
        file = folder / preset / "reconstruction.json"
        if file.exists():
            part, _ = read_part(file, "reconstruction")
            layers = [
                layer
                for layer in part["layers"]
                if layer["shape"] == [128, 128] and layer["sites"] == 2 and layer["bond"] == 4
            ]
            if layers:
                trained = sum(layer["error"] for layer in layers) / len(layers)
                random = layers[0]["random"]
                verdict = "holds" if abs(random - PUBLISHED_ERROR) < 0.05 else "does not hold"
                return (
                    f"{claim}: {verdict}, it is {random:.3f}; trained weights, {preset} settings, have {trained:.3f}."
                )
    return f"{claim}: not testable with these runs."
