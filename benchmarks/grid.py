"""The cells of the suite: tiny where the tests run it once, small for ``make bench``, full for ``make bench-full``."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from mpochain import ChainSpec, shapes

NAME = os.environ.get("MPOCHAIN_BENCH_GRID", "tiny")

GRIDS = {
    "tiny": {"shapes": [(32, 16)], "bonds": [2], "batches": [3], "kinds": ["2 sites", "3 sites", "skewed"]},
    "small": {
        "shapes": [(128, 128), (768, 768), (3072, 768)],
        "bonds": [4, 32],
        "batches": [1, 256],
        "kinds": ["2 sites", "3 sites", "skewed"],
    },
    "full": {
        "shapes": [(128, 128), (512, 128), (768, 768), (3072, 768), (768, 3072), (4096, 4096)],
        "bonds": [4, 8, 16, 32, 64],
        "batches": [1, 16, 256, 2048],
        "kinds": ["2 sites", "3 sites", "skewed"],
    },
}


@dataclass(frozen=True)
class Cell:
    """One chain at one batch size."""

    kind: str
    bond: int
    spec: ChainSpec
    batch: int

    @property
    def name(self) -> str:
        out, in_ = self.spec.shape
        return f"{out}x{in_} {self.kind} χ={self.bond} batch={self.batch}"


def _spec(kind: str, out: int, in_: int, bond: int) -> ChainSpec:
    if kind == "skewed":
        return shapes.skewed(out, in_, 8 if min(out, in_) >= 128 else 2, bond)
    sites = int(kind[0])
    return ChainSpec(shapes.balanced(out, sites), shapes.balanced(in_, sites), bond)


def cells() -> list[Cell]:
    """The cells of the chosen grid."""
    grid = GRIDS[NAME]
    return [
        Cell(kind, bond, _spec(kind, out, in_, bond), batch)
        for out, in_ in grid["shapes"]
        for kind in grid["kinds"]
        for bond in grid["bonds"]
        for batch in grid["batches"]
    ]


CELLS = [pytest.param(cell, id=cell.name.replace(" ", "-")) for cell in cells()]
