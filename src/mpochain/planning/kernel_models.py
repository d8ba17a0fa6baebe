"""Kernel models for planning: supported schedules, variants of candidates, and predicted times. Does not import torch.

A *kernel* runs a schedule. A :class:`KernelModel` tells the planner whether the kernel supports a schedule under given
conditions, which variants it has, and how many seconds they are predicted to take. The kernels in
``mpochain.execution.kernels``, which run schedules in torch, are models too, so that they can be passed to
``plan(..., kernels=...)``. ``MODELS`` are the models of the built-in kernels, for planning without torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

from mpochain.errors import ArgumentError
from mpochain.planning.candidates import Candidate
from mpochain.planning.conditions import Conditions, Graph
from mpochain.planning.cost import schedule_time
from mpochain.planning.machine import Machine
from mpochain.planning.schedule import Schedule
from mpochain.planning.variants import Variant
from mpochain.spec import ChainSpec
from mpochain.system.extensions import errors_named

__all__ = [
    "MODELS",
    "AutogradModel",
    "DenseModel",
    "KernelModel",
    "PanelsModel",
    "TiledModel",
    "kernel_errors",
    "predicted_seconds",
    "require_kernels",
    "runs",
]


class KernelModel(ABC):
    """Interface of a kernel to the planner.

    Attributes:
        name: name of the kernel in variants and stored plans.
        graphs: kinds of graph that the kernel can be part of.
    """

    name: ClassVar[str]
    graphs: ClassVar[tuple[Graph, ...]] = ("eager",)

    @abstractmethod
    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """True if the kernel can run the schedule, so that measured plans may choose it."""

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002  # used by overrides
        """True if predicted plans, which are not measured, may choose the kernel for a supported schedule."""
        return True

    @abstractmethod
    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """The variants, for a candidate with a supported schedule, that a plan chooses among."""

    def neighbours(self, variant: Variant, conditions: Conditions) -> Iterator[Variant]:  # noqa: ARG002
        """Variants to measure next, close to ``variant``, the fastest measured so far."""
        return iter(())

    @abstractmethod
    def seconds(self, variant: Variant, conditions: Conditions) -> float:
        """Predicted seconds of one call; in training, forward and backward."""


def kernel_errors(kernel: KernelModel, spec: ChainSpec) -> AbstractContextManager[None]:
    """Context whose errors of a kernel name it and the chain that is planned."""
    return errors_named(f"kernel {kernel.name!r}, plan of the chain {spec}")


def runs(kernel: KernelModel, schedule: Schedule, conditions: Conditions) -> bool:
    """True if the kernel can be part of the graph and supports the schedule."""
    return conditions.graph in kernel.graphs and kernel.supports(schedule, conditions)


def require_kernels(kernels: Iterable[object]) -> None:
    """Refuse kernels that are no instances, such as a class in place of one.

    Raises:
        ArgumentError: naming what is no kernel.
    """
    for kernel in kernels:
        if not isinstance(kernel, KernelModel):
            raise ArgumentError(
                f"a kernel of a plan must be an instance of KernelModel or Kernel, got {kernel!r}; give an instance, "
                "such as MyKernel()"
            )


def predicted_seconds(kernel: KernelModel, variant: Variant, conditions: Conditions) -> float:
    """Predicted seconds of one of the kernel's variants.

    Raises:
        ArgumentError: a variant of another kernel, or seconds that are negative or not finite.
    """
    if variant.kernel != kernel.name:
        raise ArgumentError(
            f"kernel {kernel.name!r} has a variant of the kernel {variant.kernel!r}; expected Variant(candidate, "
            "conditions.batch, self.name, ...)"
        )
    seconds = kernel.seconds(variant, conditions)
    if not 0 <= seconds < math.inf:
        raise ArgumentError(f"kernel {kernel.name!r} predicts {seconds} seconds; expected a number of 0 or more")
    return seconds


class _ScheduleModel(KernelModel):
    """A kernel whose time is predicted by ``schedule_time``."""

    def seconds(self, variant: Variant, conditions: Conditions) -> float:
        return schedule_time(
            variant.schedule,
            conditions.batch,
            variant.tile,
            training=conditions.training,
            merged_is_cached=conditions.merged_is_cached,
            machine=conditions.machine,
        )


def _widest(schedule: Schedule) -> int:
    """Largest number of elements per row of a step's input and output together."""
    return max(step.before * step.after * (step.summed + step.kept) for step in schedule.sweeps)


def _tile(schedule: Schedule, batch: int, machine: Machine) -> int:
    """Number of rows per tile whose states stay in cache: a power of two, or the batch.

    Measured for 4096x4096, two sites, χ=4, 1,024 rows: 28 ms in tiles of 64 (5 MiB), 37 ms in tiles of 256, over 45 ms
    untiled; tiles of 16 and of 64 are within 4 %.
    """
    rows_in_cache = max(machine.cache_bytes // (_widest(schedule) * machine.element_bytes), 1)
    tile = max(1 << (rows_in_cache.bit_length() - 1), machine.smallest_tile)
    return tile if batch > 2 * tile else batch


class TiledModel(_ScheduleModel):
    """A sweep over tiles of rows that stay in cache; the backward pass recomputes the states."""

    name = "tiled"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """True for sweeps of more than one step."""
        return len(schedule.sweeps) > 1

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """One variant, whose tile fits into the cache."""
        tile = _tile(candidate.schedule, conditions.batch, conditions.machine)
        yield Variant(candidate, conditions.batch, self.name, tile)

    def neighbours(self, variant: Variant, conditions: Conditions) -> Iterator[Variant]:
        """Larger and smaller tiles, and all rows at once."""
        machine = conditions.machine
        most = machine.largest_tile_bytes // (_widest(variant.schedule) * machine.element_bytes)
        for tile in (4 * variant.tile, variant.tile // 4, variant.batch):
            if max(machine.smallest_tile // 4, 1) <= tile <= variant.batch and (tile <= most or tile < variant.tile):
                yield replace(variant, tile=tile)


class AutogradModel(_ScheduleModel):
    """A sweep whose states autograd saves for the backward pass, instead of recomputing them."""

    name = "autograd"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """True in training for sweeps whose states need little memory."""
        if len(schedule.sweeps) == 1 or not conditions.training:
            return False
        return _state_bytes(schedule, conditions) <= conditions.machine.largest_states_bytes

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:
        """True for small states, and for larger ones if the last step is narrow or every step is a single product."""
        machine = conditions.machine
        narrow = 1 < schedule.sweeps[-1].after < machine.narrow_columns
        plain = all(step.after == step.before == 1 for step in schedule.sweeps)
        return narrow or plain or _state_bytes(schedule, conditions) <= machine.small_states_bytes

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """One variant with all rows at once; the tile is for calls without gradients."""
        tile = _tile(candidate.schedule, conditions.batch, conditions.machine)
        yield Variant(candidate, conditions.batch, self.name, tile)


def _state_bytes(schedule: Schedule, conditions: Conditions) -> int:
    """Bytes of the states that autograd would save, without the input."""
    per_row = sum(step.before * step.after * step.summed for step in schedule.sweeps[1:])
    return conditions.batch * per_row * conditions.machine.element_bytes


class DenseModel(_ScheduleModel):
    """All cores merged to the dense matrix, then one product."""

    name = "dense"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """True for schedules that merge all cores."""
        return len(schedule.sweeps) == 1

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """One variant with all rows at once."""
        yield Variant(candidate, conditions.batch, self.name, conditions.batch)


class PanelsModel(_ScheduleModel):
    """The dense matrix rebuilt at every call in panels of rows, never as a whole.

    Measured for 4096x4096, two sites, χ=32, 256 rows: 77 ms in 16 panels, 114 ms in one, and 50 ms for the dense layer.
    Allocating two arrays of 64 MiB costs more than their products. At 2,048 rows panels gain nothing.
    """

    name = "panels"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """True without gradients for matrices that exceed the cache and are rebuilt at every call."""
        if len(schedule.sweeps) > 1 or conditions.training or conditions.merged_is_cached:
            return False
        return _panel(schedule, conditions.machine) < _panel_axis(schedule)

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """True for few rows."""
        return conditions.batch < conditions.machine.panel_rows

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """One variant, whose panels fit into the cache."""
        panel = _panel(candidate.schedule, conditions.machine)
        yield Variant(candidate, conditions.batch, self.name, conditions.batch, (("panel", panel),))

    def neighbours(self, variant: Variant, conditions: Conditions) -> Iterator[Variant]:  # noqa: ARG002
        """Panels of half and of twice the size."""
        panel, axis = variant.option("panel"), _panel_axis(variant.schedule)
        for size in (panel // 2, 2 * panel):
            if 0 < size < axis:
                yield replace(variant, options=(("panel", size),))


def _panel_axis(schedule: Schedule) -> int:
    """Out dim of the left core in the last merge, which is split into panels; 1 without merges."""
    return schedule.merges[-1].left[1] if schedule.merges else 1


def _panel(schedule: Schedule, machine: Machine) -> int:
    """Number of entries of that out dim whose part of the matrix fits into the cache."""
    axis = _panel_axis(schedule)
    out, in_ = schedule.spec.padded_shape
    return min(max(machine.cache_bytes * axis // (out * in_ * machine.element_bytes), 1), axis)


# In order of preference: among variants with equal predicted times, that of the first kernel is chosen.
MODELS: tuple[KernelModel, ...] = (PanelsModel(), DenseModel(), AutogradModel(), TiledModel())
