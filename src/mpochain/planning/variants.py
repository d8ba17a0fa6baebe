"""How torch runs a candidate: how much at a time, and what is kept for the backward pass.

A candidate fixes the mathematics; a variant fixes what is free beside it. Predictions choose among variants by the
rules below, measurements (:mod:`mpochain.execution.tuning`) by trying the neighbours of what the rules choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mpochain.planning.candidates import Candidate
from mpochain.planning.machine import Machine
from mpochain.planning.schedule import Schedule

__all__ = ["Variant", "default_variant", "neighbours", "rivals"]

_SMALLEST_TILE = 16

# Bytes of all states of a sweep beyond its input up to which autograd may save them in training. By default few are,
# unless the last step is narrow, since its states are dear to compute again, or every step is one product of all rows,
# as of low rank, whose states are narrow; measured plans may save the larger amount anywhere. The backward pass needs
# some four times as much, which is to stay within 64 MiB.
_SMALL_STATES = 1 << 19
_MOST_STATES = 1 << 24

# Columns below which a step is narrow: its small products fill a vector unit only in part.
_NARROW = 16

# Bytes of the states of one tile that no plan exceeds, so that a training step stays within 64 MiB of its own.
_LARGEST_TILE_BYTES = 1 << 24

# Rows from which a rebuilt matrix is not made in panels: the products outweigh the memory they save.
_PANEL_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Variant:
    """A candidate and how much of it is done at a time.

    Attributes:
        candidate: the merges and the order of the sweep.
        batch: rows it is meant for.
        tile: rows of a sweep worked on at a time.
        panel: out entries of the last merge's left core rebuilt at a time; all of them unless the matrix is rebuilt
            at every call and is large.
        keeps_states: whether autograd saves the states of the sweep in training, instead of computing them twice.
    """

    candidate: Candidate
    batch: int
    tile: int
    panel: int
    keeps_states: bool = False

    @property
    def schedule(self) -> Schedule:
        """The lowered steps."""
        return self.candidate.schedule

    @property
    def rebuilds(self) -> bool:
        """Whether all sites are merged: the dense matrix, then one product."""
        return self.candidate.rebuilds

    @property
    def panels(self) -> int:
        """In how many parts the matrix is rebuilt."""
        return math.ceil(_panel_axis(self.schedule) / self.panel)

    def as_dict(self) -> dict[str, object]:
        """The choice without the shapes, for JSON."""
        return {
            "groups": [list(group) for group in self.candidate.groups],
            "order": list(self.candidate.order),
            "tile": self.tile,
            "panel": self.panel,
            "keeps_states": self.keeps_states,
        }

    def __str__(self) -> str:
        text = str(self.candidate)
        if self.tile < self.batch and not self.rebuilds:
            text += f", {self.tile} rows at a time"
        if self.panels > 1:
            text += f", in {self.panels} panels"
        return text + (", states kept" if self.keeps_states else "")


def _panel_axis(schedule: Schedule) -> int:
    """Out entries of the left core of the merge that makes the whole matrix; 1 if there is none."""
    if len(schedule.sweeps) > 1 or not schedule.merges:
        return 1
    return schedule.merges[-1].left[1]


def _states(batch: int, schedule: Schedule, machine: Machine) -> int:
    """Bytes of what autograd would save, the input apart."""
    per_row = sum(step.before * step.after * step.summed for step in schedule.sweeps[1:])
    return batch * per_row * machine.element_bytes


def _widest(schedule: Schedule) -> int:
    return max(step.before * step.after * (step.summed + step.kept) for step in schedule.sweeps)


def _tile(schedule: Schedule, batch: int, machine: Machine) -> int:
    """Rows whose states stay in cache: a power of two, or all of them.

    Measured for 4096x4096, two sites, χ=4, 1,024 rows: 28 ms in tiles of 64 (5 MiB), 37 ms in tiles of 256, over 45 ms
    untiled; tiles of 16 and of 64 are within 4 %.
    """
    if len(schedule.sweeps) == 1:
        return batch
    fitting = max(machine.cache_bytes // (_widest(schedule) * machine.element_bytes), 1)
    tile = max(1 << (fitting.bit_length() - 1), _SMALLEST_TILE)
    return tile if batch > 2 * tile else batch


def _panel(schedule: Schedule, machine: Machine) -> int:
    """Out entries whose part of the matrix fits into the cache."""
    axis = _panel_axis(schedule)
    out, in_ = schedule.spec.padded_shape
    return min(max(machine.cache_bytes * axis // (out * in_ * machine.element_bytes), 1), axis)


def default_variant(
    candidate: Candidate, batch: int, *, training: bool, merged_is_cached: bool, machine: Machine
) -> Variant:
    """The variant that the rules choose.

    Panels, 4096x4096 in two sites, χ=32, 256 rows: 77 ms in 16 panels, 114 ms in one, the dense layer 50 ms: two fresh
    arrays of 64 MiB cost more than their products. At 2,048 rows there is no gain.
    """
    schedule = candidate.schedule
    panel = _panel_axis(schedule)
    if not training and not merged_is_cached and batch < _PANEL_BATCH:
        panel = _panel(schedule, machine)
    keeps = False
    if training and not candidate.rebuilds:
        narrow = 1 < schedule.sweeps[-1].after < _NARROW
        plain = all(step.after == step.before == 1 for step in schedule.sweeps)
        keeps = _states(batch, schedule, machine) <= (_MOST_STATES if narrow or plain else _SMALL_STATES)
    return Variant(candidate, batch, _tile(schedule, batch, machine), panel, keeps)


def rivals(variant: Variant, *, training: bool, merged_is_cached: bool, machine: Machine) -> Iterator[Variant]:
    """The same candidate run in an essentially other way: whole or in panels, its states kept or not."""
    schedule, axis = variant.schedule, _panel_axis(variant.schedule)
    if training and not variant.rebuilds and _states(variant.batch, schedule, machine) <= _MOST_STATES:
        yield replace(variant, keeps_states=not variant.keeps_states)
    if axis > 1 and not training and not merged_is_cached:
        panel = axis if variant.panel < axis else _panel(schedule, machine)
        if panel != variant.panel:
            yield replace(variant, panel=panel)


def neighbours(variant: Variant, machine: Machine) -> Iterator[Variant]:
    """Larger and smaller tiles or panels."""
    if not variant.rebuilds and not variant.keeps_states:
        most = _LARGEST_TILE_BYTES // (_widest(variant.schedule) * machine.element_bytes)
        for tile in (4 * variant.tile, variant.tile // 4, variant.batch):
            if _SMALLEST_TILE // 4 <= tile <= variant.batch and (tile <= most or tile < variant.tile):
                yield replace(variant, tile=tile)
    if variant.panels > 1:
        for panel in (variant.panel // 2, 2 * variant.panel):
            if panel:
                yield replace(variant, panel=panel)
