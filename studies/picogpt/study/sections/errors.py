"""Page section on the errors of chains of trained weights."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Table, Text
from studies.picogpt.study.records import read_part

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
    """Blocks on the errors on a preset's dense weights; none before they are measured.

    Args:
        name: name of the preset.
        folder: folder with its records.
        figures: folder for the figures.
    """
    if not (folder / "reconstruction.json").exists():
        return []
    part, provenance = read_part(folder / "reconstruction.json", "reconstruction")
    records = part["layers"]
    rows = []
    for label, shape in (*_GROUPS.items(), ("head", None)):
        group = [
            layer
            for layer in records
            if (tuple(layer["shape"]) == shape if shape else tuple(layer["shape"]) not in _GROUPS.values())
        ]
        for key in sorted({(layer["sites"], layer["bond"]) for layer in group}):
            members = [layer for layer in group if (layer["sites"], layer["bond"]) == key]
            rows.append(
                {
                    "group": label,
                    "sites": key[0],
                    "bond": key[1],
                    "parameters": members[0]["parameters"],
                    **{error: _mean([layer[error] for layer in members]) for error in _ERRORS},
                }
            )
    drawn = []
    for sites, word in ((2, "two"), (3, "three")):
        file = figures / f"study-{name}-errors-{sites}.png"
        of_sites = [layer for layer in records if layer["sites"] == sites]
        draw(
            file,
            [
                Series(
                    f"χ={bond}",
                    [layer["layer"] for layer in of_sites if layer["bond"] == bond],
                    [layer["error"] for layer in of_sites if layer["bond"] == bond],
                    line=False,
                )
                for bond in sorted({layer["bond"] for layer in of_sites})
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
                "Relative Frobenius errors of balanced TT-SVD chains of the trained dense weights, means over the "
                "layers, compared with the two low ranks closest in parameters and with a chain of a random matrix.",
                _verdict(records),
            )
        ),
        Text(origin([provenance])),
        Table(_COLUMNS, rows),
        *drawn,
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _verdict(records: list[dict[str, Any]]) -> str:
    parts = []
    for sites, word in ((2, "two"), (3, "three")):
        of_sites = [layer for layer in records if layer["sites"] == sites]
        better = sum(layer["error"] < layer["low_rank_above"] for layer in of_sites)
        worse = sum(layer["low_rank"] is not None and layer["error"] > layer["low_rank"] for layer in of_sites)
        parts.append(
            f"chains of {word} sites have a smaller error than low rank with more parameters in {better} of "
            f"{len(of_sites)} cases, and a larger error than low rank with at most as many in {worse}"
        )
    return f"Over all layers and χ, {'; '.join(parts)}."
