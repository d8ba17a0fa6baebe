"""The cells of the suite: tiny where the tests run it once, small for ``make bench``."""

from __future__ import annotations

import os

import pytest

from mpochain import ChainSpec, shapes

GRIDS = {
    "tiny": {"shapes": [(32, 16)], "bonds": [2], "batches": [3]},
    "small": {"shapes": [(128, 128), (512, 128), (3072, 768)], "bonds": [4, 16], "batches": [1, 32, 1024]},
}
GRID = GRIDS[os.environ.get("MPOCHAIN_BENCH_GRID", "tiny")]


def specs(out_features: int, in_features: int, bond: int) -> dict[str, ChainSpec]:
    """The chains of a cell: balanced in two and three sites, and skewed."""
    return {
        "2 sites": ChainSpec(shapes.balanced(out_features, 2), shapes.balanced(in_features, 2), bond),
        "3 sites": ChainSpec(shapes.balanced(out_features, 3), shapes.balanced(in_features, 3), bond),
        "skewed": shapes.skewed(out_features, in_features, 8 if in_features >= 128 else 2, bond),
    }


CELLS = [
    pytest.param(spec, batch, id=f"{out}x{in_} {name} χ={bond} batch={batch}")
    for out, in_ in GRID["shapes"]
    for bond in GRID["bonds"]
    for name, spec in specs(out, in_, bond).items()
    for batch in GRID["batches"]
]
