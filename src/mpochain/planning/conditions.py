"""Conditions that a plan is made for: batch, mode, memory, kind of graph, element type, device and machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpochain.errors import ArgumentError
from mpochain.planning.machine import Machine, Setting
from mpochain.wording import article

__all__ = ["Conditions", "Graph", "Memory", "Mode"]

Mode = Literal["inference", "training"]
Memory = Literal["compact", "fast"]
Graph = Literal["eager", "compiled", "portable"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions under which a chain runs; kernels support and predict variants for them.

    Attributes:
        batch: number of input rows.
        mode: ``"inference"``, or ``"training"`` (forward and backward).
        memory: ``"compact"`` (cores are merged at every call) or ``"fast"`` (merged cores are cached).
        setting: element type, device and threads.
        machine: machine constants for predictions.
        graph: ``"eager"``, ``"compiled"`` (by ``torch.compile``), or ``"portable"`` (only reshapes, permutes and
            products, for ``torch.export`` and ``torch.func``).

    Raises:
        ArgumentError: a mode, memory, setting, machine or graph of another kind.
    """

    batch: int
    mode: Mode
    memory: Memory
    setting: Setting
    machine: Machine
    graph: Graph = "eager"

    def __post_init__(self) -> None:
        if self.mode not in ("inference", "training"):
            raise ArgumentError(f"mode must be 'inference' or 'training', got {self.mode!r}")
        if self.memory not in ("compact", "fast"):
            raise ArgumentError(f"memory must be 'compact' or 'fast', got {self.memory!r}")
        if self.graph not in ("eager", "compiled", "portable"):
            raise ArgumentError(f"graph must be 'eager', 'compiled' or 'portable', got {self.graph!r}")
        for name, value, kind in (("setting", self.setting, Setting), ("machine", self.machine, Machine)):
            if not isinstance(value, kind):
                raise ArgumentError(f"{name} must be {article(kind.__name__)}, got {type(value).__name__}")

    @property
    def training(self) -> bool:
        """True if the backward pass counts too."""
        return self.mode == "training"

    @property
    def merged_is_cached(self) -> bool:
        """True if merged cores are cached between calls, so that merging costs nothing."""
        return self.memory == "fast"
