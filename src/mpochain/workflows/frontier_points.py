"""Points of a frontier: which methods run at which sizes, and with which budget and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpochain.compression import Method, method_named
from mpochain.compression.methods.uniform_bits import UniformBits
from mpochain.errors import ArgumentError
from mpochain.quantization import BITS, Scheme

__all__ = ["METHODS_DRAWN", "OWN_BITS", "SIZES", "Point", "points_of"]

SIZES = (8.0, 6.0, 5.0, 4.0, 3.5, 3.25, 3.0, 2.5, 2.0)
"""Default sizes, in bits per weight of the layers."""

METHODS_DRAWN = ("auto", "gptq", "rtn", "svd_llm")
"""Default methods."""

OWN_BITS = 16
"""Bits in which the numbers of methods without few bits are counted; their factors lose nothing by them."""

_GROUPS = (128, 64, 32)  # of methods with the same number of bits everywhere


@dataclass(frozen=True)
class Point:
    """One method at one size.

    Attributes:
        method: name of the method.
        bits: limit of the bits per weight of the layers.
        budget: the same limit as a budget of the method.
        settings: settings of the method, such as the group of uniform bits that comes nearest to the size.
        refined: whether the blocks are refined after the compression.
    """

    method: str
    bits: float
    budget: float | str
    settings: tuple[tuple[str, Any], ...] = ()
    refined: bool = False

    @property
    def name(self) -> str:
        """Name of the record."""
        return f"{self.method}-{self.bits:g}{'-refined' if self.refined else ''}"

    def chosen_method(self) -> Method:
        """The method with its settings."""
        return method_named(self.method, dict(self.settings))


def points_of(methods: Sequence[str], sizes: Sequence[float], refine: Sequence[str] = ()) -> list[Point]:
    """The points of a frontier, methods in order, sizes that one calibration serves next to each other.

    A method with the same bits everywhere has the largest bits and group that fit each size, and no point above its
    largest size or below its smallest. A method without few bits keeps a share of the weights, counted in 16 bits.

    Args:
        methods: names of methods.
        sizes: limits in bits per weight of the layers.
        refine: names of points, such as ``"auto-3"``, that have a second point after them, with refined blocks.

    Raises:
        ArgumentError: a method is unknown or compresses no linear layers, a size is out of range, or ``refine`` names
            no point.

    Example:
        >>> for point in points_of(["auto", "rtn", "svd_llm"], [3.25]):
        ...     print(point.name, point.budget, point.settings)
        auto-3.25 3.25 bits ()
        rtn-3.25 3.25 bits (('group', 128),)
        svd_llm-3.25 0.203125 ()
    """
    if not sizes or not methods:
        raise ArgumentError("a frontier needs at least one size and one method, got none")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0.0 < size <= OWN_BITS:
            raise ArgumentError(f"a size is a number of bits per weight, above 0 and at most {OWN_BITS}, got {size!r}")
    points: list[Point] = []
    for name in dict.fromkeys(methods):
        method = method_named(name)
        if not method.linear:
            raise ArgumentError(f"method {name!r} compresses no linear layers, so it has no frontier; leave it out")
        own = [_point(name, method, float(size)) for size in sorted(set(sizes), reverse=True)]
        points += sorted((point for point in own if point is not None), key=lambda point: point.settings)
    names = [point.name for point in points]
    for name in refine:
        if name not in names:
            raise ArgumentError(f"there is no point {name!r} to refine; name one of {', '.join(names)}")
    return [
        variant
        for point in points
        for variant in ((point, replace(point, refined=True)) if point.name in refine else (point,))
    ]


def _point(name: str, method: Method, size: float) -> Point | None:
    if isinstance(method, UniformBits):
        fitting = [
            (Scheme(bits, group).bits_per_weight(1, 1 << 12), group)
            for bits in BITS
            for group in _GROUPS
            if Scheme(bits, group).bits_per_weight(1, 1 << 12) <= size
        ]
        return Point(name, size, f"{size:g} bits", (("group", max(fitting)[1]),)) if fitting else None
    if name == "auto":
        return Point(name, size, f"{size:g} bits")
    return Point(name, size, size / OWN_BITS)
