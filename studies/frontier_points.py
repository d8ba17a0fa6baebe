"""Points of the frontiers of small models, which share their sizes so that their pages can be compared."""

from __future__ import annotations

from mpochain.workflows.frontier_points import Point, points_of

__all__ = ["SIZES", "points"]

# Uniform bits with groups of 128, 64 or 32 have nothing between 4.75 and 8.19 bits per weight, and nothing below 2.19.
_UNIFORM = (8.25, 5.0, 4.25, 4.0, 3.5, 3.0, 2.5)

SIZES = {
    "auto": (8.0, 6.0, 5.0, 4.25, 4.0, 3.5, 3.0, 2.5, 2.0),
    "gptq": _UNIFORM,
    "rtn": _UNIFORM,
    # With factors in 16 bits, 4 bits leave a quarter of the parameters.
    "svd_llm": (8.0, 6.0, 5.0, 4.0),
}
"""Limits of each method, in bits per weight of the layers."""


def points() -> list[Point]:
    """All points, those of one method next to each other."""
    return [point for method, sizes in SIZES.items() for point in points_of([method], sizes)]
