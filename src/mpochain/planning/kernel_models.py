"""Kernel models: which variants of a candidate a kernel runs, and how long they take. No tensors.

A *kernel* runs a schedule. Planning needs to know three things of it: whether it supports a schedule under given
conditions, its variants, and their predicted seconds. :class:`KernelModel` states these. The kernels that run them in
torch are in ``mpochain.execution.kernels``; they are models too, so that ``plan(..., kernels=...)`` can be given
them. ``MODELS`` are the models of the built-in kernels, with which a plan is made where torch is not imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from mpochain.planning.candidates import Candidate
from mpochain.planning.conditions import Conditions, Graph
from mpochain.planning.cost import schedule_time
from mpochain.planning.machine import Machine
from mpochain.planning.schedule import Schedule
from mpochain.planning.variants import Variant

__all__ = ["MODELS", "AutogradModel", "DenseModel", "KernelModel", "PanelsModel", "TiledModel", "runs"]


class KernelModel(ABC):
    """What planning knows of a kernel.

    Attributes:
        name: by which variants and stored plans refer to the kernel.
        graphs: kinds of graph that it can be part of.
    """

    name: ClassVar[str]
    graphs: ClassVar[tuple[Graph, ...]] = ("eager",)

    @abstractmethod
    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """Whether the kernel can run the schedule; measured plans may then choose it."""

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002  # for those that override it
        """Whether plans that are only predicted may choose the kernel, where it supports the schedule."""
        return True

    @abstractmethod
    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """The variants of a candidate, whose schedule is supported, that a plan chooses among."""

    def neighbours(self, variant: Variant, conditions: Conditions) -> Iterator[Variant]:  # noqa: ARG002
        """Variants close to ``variant``, the fastest measured so far, that are worth measuring next."""
        return iter(())

    @abstractmethod
    def seconds(self, variant: Variant, conditions: Conditions) -> float:
        """Predicted seconds of one call, forward and backward in training."""


def runs(kernel: KernelModel, schedule: Schedule, conditions: Conditions) -> bool:
    """Whether the kernel can be part of the graph and supports the schedule."""
    return conditions.graph in kernel.graphs and kernel.supports(schedule, conditions)


class _ScheduleModel(KernelModel):
    """A kernel that takes as long as ``schedule_time`` says."""

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
    """Most elements per row of a step's input and output together."""
    return max(step.before * step.after * (step.summed + step.kept) for step in schedule.sweeps)


def _tile(schedule: Schedule, batch: int, machine: Machine) -> int:
    """Rows whose states stay in cache: a power of two, or all of them.

    Measured for 4096x4096, two sites, χ=4, 1,024 rows: 28 ms in tiles of 64 (5 MiB), 37 ms in tiles of 256, over 45 ms
    untiled; tiles of 16 and of 64 are within 4 %.
    """
    rows_in_cache = max(machine.cache_bytes // (_widest(schedule) * machine.element_bytes), 1)
    tile = max(1 << (rows_in_cache.bit_length() - 1), machine.smallest_tile)
    return tile if batch > 2 * tile else batch


class TiledModel(_ScheduleModel):
    """A sweep over tiles of rows that stay in cache; the backward pass computes the states again."""

    name = "tiled"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """Any sweep of more than one step."""
        return len(schedule.sweeps) > 1

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """The tile that fits into the cache."""
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
    """A sweep whose states autograd saves for the backward pass, instead of computing them twice."""

    name = "autograd"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """Sweeps in training whose states need little memory."""
        if len(schedule.sweeps) == 1 or not conditions.training:
            return False
        return _state_bytes(schedule, conditions) <= conditions.machine.largest_states_bytes

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:
        """Small states; larger ones if the last step is narrow, or if every step is one product of all rows."""
        machine = conditions.machine
        narrow = 1 < schedule.sweeps[-1].after < machine.narrow_columns
        plain = all(step.after == step.before == 1 for step in schedule.sweeps)
        return narrow or plain or _state_bytes(schedule, conditions) <= machine.small_states_bytes

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """All rows at once; the tile is that of calls without gradients."""
        tile = _tile(candidate.schedule, conditions.batch, conditions.machine)
        yield Variant(candidate, conditions.batch, self.name, tile)


def _state_bytes(schedule: Schedule, conditions: Conditions) -> int:
    """Bytes that autograd would save, the input apart."""
    per_row = sum(step.before * step.after * step.summed for step in schedule.sweeps[1:])
    return conditions.batch * per_row * conditions.machine.element_bytes


class DenseModel(_ScheduleModel):
    """All cores merged to the dense matrix, then one product."""

    name = "dense"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """Schedules that merge all cores."""
        return len(schedule.sweeps) == 1

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """All rows at once."""
        yield Variant(candidate, conditions.batch, self.name, conditions.batch)


class PanelsModel(_ScheduleModel):
    """The dense matrix rebuilt a panel of rows at a time at every call; it is never complete.

    4096x4096 in two sites, χ=32, 256 rows: 77 ms in 16 panels, 114 ms in one, the dense layer 50 ms: two fresh arrays
    of 64 MiB cost more than their products. At 2,048 rows there is no gain.
    """

    name = "panels"

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:
        """Matrices larger than the cache that are rebuilt at every call, without gradients."""
        if len(schedule.sweeps) > 1 or conditions.training or conditions.merged_is_cached:
            return False
        return _panel(schedule, conditions.machine) < _panel_axis(schedule)

    def advised(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """Few rows."""
        return conditions.batch < conditions.machine.panel_rows

    def variants(self, candidate: Candidate, conditions: Conditions) -> Iterator[Variant]:
        """Panels that fit into the cache."""
        panel = _panel(candidate.schedule, conditions.machine)
        yield Variant(candidate, conditions.batch, self.name, conditions.batch, (("panel", panel),))

    def neighbours(self, variant: Variant, conditions: Conditions) -> Iterator[Variant]:  # noqa: ARG002
        """Panels of half and twice the size."""
        panel, axis = variant.option("panel"), _panel_axis(variant.schedule)
        for size in (panel // 2, 2 * panel):
            if 0 < size < axis:
                yield replace(variant, options=(("panel", size),))


def _panel_axis(schedule: Schedule) -> int:
    """Out entries of the left core of the merge that makes the dense matrix; 1 if there is none."""
    return schedule.merges[-1].left[1] if schedule.merges else 1


def _panel(schedule: Schedule, machine: Machine) -> int:
    """Out entries whose part of the matrix fits into the cache."""
    axis = _panel_axis(schedule)
    out, in_ = schedule.spec.padded_shape
    return min(max(machine.cache_bytes * axis // (out * in_ * machine.element_bytes), 1), axis)


# In the order of preference: of variants predicted to take equally long, the first kernel's is chosen.
MODELS: tuple[KernelModel, ...] = (PanelsModel(), DenseModel(), AutogradModel(), TiledModel())
