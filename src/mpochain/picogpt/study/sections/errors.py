"""How well chains hold trained weights."""

from __future__ import annotations

import statistics
from pathlib import Path

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
    Column("low_rank", "low rank, as many parameters", ".3f"),
    Column("random", "chain of noise", ".3f"),
)

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
    records, provenance = read_part(folder / "reconstruction.json", "reconstruction")
    rows = []
    for label, shape in (*_GROUPS.items(), ("head", None)):
        group = [
            each
            for each in records
            if (tuple(each["shape"]) == shape if shape else tuple(each["shape"]) not in _GROUPS.values())
        ]
        for key in sorted({(each["sites"], each["bond"]) for each in group}):
            members = [each for each in group if (each["sites"], each["bond"]) == key]
            means = {what: statistics.fmean(each[what] for each in members) for what in ("error", "low_rank", "random")}
            rows.append(
                {"group": label, "sites": key[0], "bond": key[1], "parameters": members[0]["parameters"], **means}
            )
    file = figures / f"study-{name}-errors.png"
    two = [each for each in records if each["sites"] == 2]
    draw(
        file,
        [
            Series(f"χ={bond}", [each["layer"] for each in two if each["bond"] == bond], values)
            for bond in sorted({each["bond"] for each in two})
            if (values := [each["error"] for each in two if each["bond"] == bond])
        ],
        title="Relative error of each trained weight, two sites",
        x="layer",
        y="relative Frobenius error",
        axes={"ylim": (0, 1.02)},
    )
    return [
        Heading("Errors on trained weights", 3),
        Text(("Relative Frobenius errors of balanced chains of the trained dense weights, means over the layers.",)),
        Text(origin([provenance])),
        Table(_COLUMNS, rows),
        Figure(file, "Relative error of each trained weight in two sites"),
    ]
