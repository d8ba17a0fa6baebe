"""Conditions of a plan: batch, mode, memory, kind of graph, element type, device and machine constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpochain.errors import ArgumentError
from mpochain.planning.machine import Machine, Setting

__all__ = ["Conditions", "Graph", "Memory", "Mode"]

Mode = Literal["inference", "training"]
Memory = Literal["compact", "fast"]
Graph = Literal["eager", "compiled", "portable"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions under which a chain is run, which kernels are asked about.

    Attributes:
        batch: number of input rows.
        mode: ``"inference"``, or ``"training"`` (forward and backward).
        memory: ``"compact"`` (merges are paid at every call) or ``"fast"`` (merged cores are kept).
        setting: element type, device and threads.
        machine: constants that predictions are made from.
        graph: ``"eager"``, ``"compiled"`` (by ``torch.compile``), or ``"portable"`` (reshapes, permutes and products
            alone, as ``torch.export`` and ``torch.func`` need them).

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
                raise ArgumentError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")

    @property
    def training(self) -> bool:
        """Whether forward and backward count."""
        return self.mode == "training"

    @property
    def merged_is_cached(self) -> bool:
        """Whether merged cores are kept between calls, and therefore free."""
        return self.memory == "fast"
