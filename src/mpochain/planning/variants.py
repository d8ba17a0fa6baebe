"""Variants: a candidate, the kernel that runs it, and how much that kernel does at a time."""

from __future__ import annotations

from dataclasses import dataclass

from mpochain.planning.candidates import Candidate
from mpochain.planning.schedule import Schedule

__all__ = ["Variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a chain: the mathematics (the candidate), the kernel, and the kernel's own sizes.

    Attributes:
        candidate: the merges and the order of the sweep.
        batch: rows it is meant for.
        kernel: name of the kernel that runs it.
        tile: rows worked on at a time.
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
        """Whether all sites are merged: the dense matrix, then one product."""
        return self.candidate.rebuilds

    def option(self, name: str) -> int:
        """A size of the kernel.

        Raises:
            KeyError: the kernel has no size of this name.
        """
        return dict(self.options)[name]

    def as_dict(self) -> dict[str, object]:
        """The choice without the shapes, for JSON."""
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
