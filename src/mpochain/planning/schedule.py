"""Contraction schedules: plans lowered to reshapes, permutes and two-operand products.

A schedule runs on any array library, and under torch.compile and torch.export, because no step depends on the batch
size: the batch is always the ``-1`` of a reshape.

*Sweep steps need no permuted copy of the activations*, for any order of the sites. The layout of the state is
``(batch, d_1, ..., d_n)``, where ``d_k`` is ``i_k`` before site ``k`` is contracted, and afterwards the out dim with
those bonds of the site that are still open. Contracting site ``k`` sums over ``i_k`` and the bonds shared with
contracted neighbours, which are adjacent in the state. So the state is viewed as ``(before, summed, after)``, and the
core, as a matrix ``(kept, summed)``, multiplies it from the left. The result ``(before, kept, after)`` has the same
layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpochain.arrays import Array
from mpochain.spec import ChainSpec

__all__ = ["MergeStep", "Schedule", "SweepStep", "lower"]


@dataclass(frozen=True, slots=True)
class MergeStep:
    """Contract cores ``position`` and ``position + 1`` of the current list into one core.

    Attributes:
        position: index of the left core in the list of cores when the step runs.
        left: shape ``(r, o, i, s)`` of the left core.
        right: shape ``(s, p, j, t)`` of the right core.
    """

    position: int
    left: tuple[int, int, int, int]
    right: tuple[int, int, int, int]

    @property
    def macs(self) -> int:
        """Multiply-adds of the step."""
        return math.prod(self.left) * math.prod(self.right[1:])

    @property
    def result(self) -> tuple[int, int, int, int]:
        """Shape ``(r, o p, i j, t)`` of the merged core."""
        (r, o, i, _), (_, p, j, t) = self.left, self.right
        return r, o * p, i * j, t

    def __call__(self, a: Array, b: Array, xp: Any) -> Array:
        """Merge ``a`` of shape ``left`` and ``b`` of shape ``right`` in the array namespace ``xp``."""
        (r, o, i, s), (_, p, j, t) = self.left, self.right
        joined = xp.reshape(a, (r * o * i, s)) @ xp.reshape(b, (s, p * j * t))
        joined = xp.reshape(joined, (r, o, i, p, j, t))
        return xp.reshape(xp.permute_dims(joined, (0, 1, 3, 2, 4, 5)), self.result)


@dataclass(frozen=True, slots=True)
class SweepStep:
    """Contract the state with the core of one site.

    Attributes:
        site: index of the core after merging.
        axes: permutation of the core's axes that puts kept axes before summed ones.
        kept: ``K``, size of the kept axes.
        summed: ``C``, size of the summed axes.
        before: size per batch row of the state's axes before the summed ones.
        after: size of the state's axes after the summed ones.
    """

    site: int
    axes: tuple[int, int, int, int]
    kept: int
    summed: int
    before: int
    after: int

    @property
    def macs(self) -> int:
        """Multiply-adds per batch row."""
        return self.before * self.after * self.kept * self.summed

    def matrix(self, core: Array, xp: Any) -> Array:
        """The core as the matrix ``(kept, summed)``; a view if its axes already have that order."""
        if self.axes != (0, 1, 2, 3):
            core = xp.permute_dims(core, self.axes)
        return xp.reshape(core, (self.kept, self.summed))

    def __call__(self, core: Array, state: Array, xp: Any) -> Array:
        """``state``, any shape that reshapes to ``(B before, summed, after)``, to ``(B before, kept, after)``."""
        matrix = self.matrix(core, xp)
        if self.after == 1:
            return xp.reshape(state, (-1, self.summed)) @ matrix.mT
        return matrix @ xp.reshape(state, (-1, self.summed, self.after))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Merges of cores, then a sweep over the merged cores.

    Attributes:
        spec: spec of the chain.
        merges: merges of neighbouring cores, in order.
        sweeps: sweep steps, one per merged core.
    """

    spec: ChainSpec
    merges: tuple[MergeStep, ...]
    sweeps: tuple[SweepStep, ...]

    @property
    def merge_macs(self) -> int:
        """Multiply-adds of the merges per call."""
        return sum(step.macs for step in self.merges)

    @property
    def sweep_macs(self) -> int:
        """Multiply-adds of the sweep per batch row."""
        return sum(step.macs for step in self.sweeps)

    def peak_elements(self, batch: int) -> int:
        """Largest number of elements alive in a step with ``batch`` rows: its input, its output and the cores."""
        cores = self.spec.parameters
        peak = 0
        for merge in self.merges:
            with_result = cores + math.prod(merge.result)
            peak = max(peak, with_result)
            cores = with_result - math.prod(merge.left) - math.prod(merge.right)
        for step in self.sweeps:
            peak = max(peak, cores + batch * step.before * step.after * (step.summed + step.kept))
        return peak

    def merge(self, cores: Sequence[Array], xp: Any) -> tuple[Array, ...]:
        """Merged cores, in site order, computed in the array namespace ``xp``."""
        merged = list(cores)
        for step in self.merges:
            k = step.position
            merged[k : k + 2] = [step(merged[k], merged[k + 1], xp)]
        return tuple(merged)

    def sweep(self, x: Array, merged: Sequence[Array], xp: Any) -> Array:
        """``x (rows, in_features)`` through merged cores to ``(rows, out_features)``."""
        spec = self.spec
        padded_out, padded_in = spec.padded_shape
        if padded_in != spec.in_features:
            zeros = xp.broadcast_to(xp.zeros_like(x[:, :1]), (x.shape[0], padded_in - spec.in_features))
            x = xp.concat([x, zeros], axis=1)
        y = self.sweep_padded(x, merged, xp)
        return y if padded_out == spec.out_features else y[:, : spec.out_features]

    def sweep_padded(self, x: Array, merged: Sequence[Array], xp: Any) -> Array:
        """``x (rows, padded in)`` through merged cores to ``(rows, padded out)``."""
        state = x
        for step in self.sweeps:
            state = step(merged[step.site], state, xp)
        return xp.reshape(state, (-1, self.spec.padded_shape[0]))


def lower(spec: ChainSpec, groups: Sequence[Sequence[int]], merges: Sequence[int], order: Sequence[int]) -> Schedule:
    """Lower groups of sites and an order of the merged cores to a schedule.

    Args:
        spec: spec of the chain.
        groups: groups of contiguous sites, each merged into one core, covering all sites in order.
        merges: positions at which neighbouring cores are merged into the groups, one after the other.
        order: order in which the merged cores meet the state.

    Example:
        >>> schedule = lower(ChainSpec((4, 4), (3, 3), max_bond=2), [(0,), (1,)], [], [1, 0])
        >>> [(step.site, step.kept, step.summed, step.before, step.after) for step in schedule.sweeps]
        [(1, 8, 3, 3, 1), (0, 4, 6, 1, 4)]
    """
    shapes = list(spec.core_shapes)
    merge_steps = []
    for position in merges:
        step = MergeStep(position, shapes[position], shapes[position + 1])
        shapes[position : position + 2] = [step.result]
        merge_steps.append(step)
    assert len(shapes) == len(groups)
    state = [in_ for _, _, in_, _ in shapes]
    done: set[int] = set()
    sweep_steps = []
    for site in order:
        size = shapes[site]
        left_bound, right_bound = site - 1 in done, site + 1 in done
        summed_axes = [axis for axis, bound in ((0, left_bound), (2, True), (3, right_bound)) if bound]
        kept_axes = [axis for axis in range(4) if axis not in summed_axes]
        kept, summed = (math.prod(size[axis] for axis in axes) for axes in (kept_axes, summed_axes))
        # A shared bond is counted in the neighbour's entry of the state.
        if left_bound:
            state[site - 1] //= size[0]
        if right_bound:
            state[site + 1] //= size[3]
        before, after = math.prod(state[:site]), math.prod(state[site + 1 :])
        # Moving an axis of size 1 moves no data, so only the order of the other axes matters.
        order_of_axes = [*kept_axes, *summed_axes]
        if [axis for axis in order_of_axes if size[axis] > 1] == [axis for axis in range(4) if size[axis] > 1]:
            order_of_axes = [0, 1, 2, 3]
        a, b, c, d = order_of_axes
        sweep_steps.append(SweepStep(site, (a, b, c, d), kept, summed, before, after))
        state[site] = kept
        done.add(site)
    return Schedule(spec, tuple(merge_steps), tuple(sweep_steps))
