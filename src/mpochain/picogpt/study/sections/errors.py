"""How well chains hold trained weights."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mpochain.picogpt.study.records import read_part
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Table, Text

__all__ = ["errors"]

_COLUMNS = (
    Column("group", "layers"),
    Column("sites", "sites"),
    Column("bond", "χ"),
    Column("parameters", "parameters", ","),
    Column("error", "chain", ".3f"),
    Column("low_rank", "low rank, at most as many", ".3f"),
    Column("low_rank_above", "low rank, more", ".3f"),
    Column("random", "chain of noise", ".3f"),
)
_ERRORS = ("error", "low_rank", "low_rank_above", "random")

_GROUPS = {"q, k, v, o (128x128)": (128, 128), "W_1 (512x128)": (512, 128), "W_2 (128x512)": (128, 512)}


def errors(name: str, folder: Path, figures: Path) -> list[Block]:
    """The errors on the dense weights of a preset; nothing while they have not been measured.

    Args:
        name: of the preset.
        folder: of its records.
        figures: folder to draw in.
    """
    if not (folder / "reconstruction.json").exists():
        return []
    part, provenance = read_part(folder / "reconstruction.json", "reconstruction")
    records = part["layers"]
    rows = []
    for label, shape in (*_GROUPS.items(), ("head", None)):
        group = [
            each
            for each in records
            if (tuple(each["shape"]) == shape if shape else tuple(each["shape"]) not in _GROUPS.values())
        ]
        for key in sorted({(each["sites"], each["bond"]) for each in group}):
            members = [each for each in group if (each["sites"], each["bond"]) == key]
            rows.append(
                {
                    "group": label,
                    "sites": key[0],
                    "bond": key[1],
                    "parameters": members[0]["parameters"],
                    **{what: _mean([each[what] for each in members]) for what in _ERRORS},
                }
            )
    drawn = []
    for sites, word in ((2, "two"), (3, "three")):
        file = figures / f"study-{name}-errors-{sites}.png"
        chosen = [each for each in records if each["sites"] == sites]
        draw(
            file,
            [
                Series(
                    f"χ={bond}",
                    [each["layer"] for each in chosen if each["bond"] == bond],
                    [each["error"] for each in chosen if each["bond"] == bond],
                    line=False,
                )
                for bond in sorted({each["bond"] for each in chosen})
            ],
            title=f"Relative error of each trained weight, {word} sites",
            x="layer",
            y="relative Frobenius error",
            axes={"ylim": (0, 1.02)},
        )
        drawn.append(Figure(file, f"Relative error of each trained weight in {word} sites"))
    return [
        Heading("Errors on trained weights", 3),
        Text(
            (
                "Relative Frobenius errors of balanced chains of the trained dense weights by TT-SVD, means over the "
                "layers; beside them the two low ranks nearest in parameters, and a chain of a random matrix.",
                _verdict(records),
            )
        ),
        Text(origin([provenance])),
        Table(_COLUMNS, rows),
        *drawn,
    ]


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _verdict(records: list[dict[str, Any]]) -> str:
    parts = []
    for sites, word in ((2, "two"), (3, "three")):
        chosen = [each for each in records if each["sites"] == sites]
        better = sum(each["error"] < each["low_rank_above"] for each in chosen)
        worse = sum(each["low_rank"] is not None and each["error"] > each["low_rank"] for each in chosen)
        parts.append(
            f"chains of {word} sites have a smaller error than low rank of more parameters in {better} of "
            f"{len(chosen)} cases, and a greater one than low rank of at most as many in {worse}"
        )
    return f"Of all layers and χ, {'; '.join(parts)}."
