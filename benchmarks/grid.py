"""Grids of benchmark cells: tiny for the tests, small for ``make bench``, full for ``make bench-full``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product

import pytest

from mpochain import ChainSpec, shapes

NAME = os.environ.get("MPOCHAIN_BENCH_GRID", "tiny")

KINDS = ("2 sites", "3 sites", "2 sites skewed", "3 sites skewed")


@dataclass(frozen=True)
class Block:
    """Block of cells: all combinations of shapes, kinds, bonds and batches."""

    shapes: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...]
    bonds: tuple[int, ...]
    batches: tuple[int, ...]
    dtype: str = "float32"


_SMALL = ((128, 128), (768, 768), (3072, 768))
_FULL = ((128, 128), (512, 128), (768, 768), (3072, 768), (768, 3072), (4096, 4096))
_BONDS = (4, 8, 16, 32, 64)
_BATCHES = (1, 16, 256, 2048)

GRIDS = {
    "tiny": [Block(((32, 16),), KINDS, (2,), (3,), dtype) for dtype in ("float32", "bfloat16")],
    "small": [
        Block(_SMALL, KINDS[:3], (4, 32), (1, 256)),
        Block(((768, 768),), ("2 sites",), (4,), (1, 256), "bfloat16"),
    ],
    "full": [
        Block(_FULL, KINDS, _BONDS, _BATCHES),
        # One of the targets names this batch size.
        Block(((4096, 4096),), ("2 sites",), (4,), (1024,)),
        Block(_FULL, KINDS, _BONDS, _BATCHES, "bfloat16"),
    ],
}


@dataclass(frozen=True)
class Cell:
    """Benchmark cell: one chain in one dtype at one batch size."""

    kind: str
    bond: int
    spec: ChainSpec
    batch: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        out, in_ = self.spec.shape
        short = " bf16" if self.dtype == "bfloat16" else ""
        return f"{out}x{in_} {self.kind} χ={self.bond} batch={self.batch}{short}"


def spec_of(kind: str, out: int, in_: int, bond: int) -> ChainSpec:
    """Spec of the chain for a kind and a shape."""
    smaller = min(out, in_)
    if kind == "2 sites skewed":
        return shapes.skewed(out, in_, 8 if smaller >= 128 else 2, bond)
    if kind == "3 sites skewed":
        skew = 4 if smaller > 128 else 2
        return ChainSpec((out // skew**2, skew, skew), (skew, skew, in_ // skew**2), bond)
    sites = int(kind[0])
    return ChainSpec(shapes.balanced(out, sites), shapes.balanced(in_, sites), bond)


def cells(grid: str = NAME) -> list[Cell]:
    """Cells of a grid without duplicates: clipping of bonds may make a cell equal to an earlier one."""
    distinct: dict[tuple[ChainSpec, int, str], Cell] = {}
    for block in GRIDS[grid]:
        for (out, in_), kind, bond, batch in product(block.shapes, block.kinds, block.bonds, block.batches):
            cell = Cell(kind, bond, spec_of(kind, out, in_, bond), batch, block.dtype)
            distinct.setdefault((cell.spec, batch, block.dtype), cell)
    return list(distinct.values())


CELLS = [pytest.param(cell, id=cell.name.replace(" ", "-")) for cell in cells()]
