"""Variants of contraction candidates: a candidate, a kernel, and the kernel's tile sizes."""

from __future__ import annotations

from dataclasses import dataclass

from mpochain.planning.candidates import Candidate
from mpochain.planning.schedule import Schedule

__all__ = ["Variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a chain: a candidate (the mathematics), a kernel, and the kernel's sizes.

    Attributes:
        candidate: the merges and the order of the sweep.
        batch: number of rows that the variant is for.
        kernel: name of the kernel.
        tile: number of rows processed at a time.
        options: further sizes of the kernel, by name.
    """

    candidate: Candidate
    batch: int
    kernel: str
    tile: int
    options: tuple[tuple[str, int], ...] = ()

    @property
    def schedule(self) -> Schedule:
        """The lowered steps."""
        return self.candidate.schedule

    @property
    def rebuilds(self) -> bool:
        """True if all sites are merged, which rebuilds the dense matrix."""
        return self.candidate.rebuilds

    def option(self, name: str) -> int:
        """A size of the kernel.

        Raises:
            KeyError: the kernel has no size of this name.
        """
        return dict(self.options)[name]

    def as_dict(self) -> dict[str, object]:
        """The variant without shapes, for JSON."""
        return {
            "groups": [list(group) for group in self.candidate.groups],
            "order": list(self.candidate.order),
            "kernel": self.kernel,
            "tile": self.tile,
            "options": dict(self.options),
        }

    def __str__(self) -> str:
        text = f"{self.candidate}, {self.kernel}"
        if self.tile < self.batch:
            text += f", {self.tile} rows at a time"
        return text + "".join(f", {name} {size}" for name, size in self.options)
