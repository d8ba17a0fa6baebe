"""Cost model of schedules: arithmetic or memory traffic, whichever is longer, plus a cost per call.

``time = sum over steps of max(FLOPs / rate, bytes / bandwidth) + calls x overhead``

The rate of a matrix product depends on its shape far more than its FLOPs do: batched products of small matrices reach
a small part of what one large product reaches.
"""

from __future__ import annotations

import math

from mpochain.planning.machine import Machine
from mpochain.planning.schedule import Schedule, SweepStep

__all__ = ["dense_time", "low_rank_time", "schedule_time"]


def _product_time(machine: Machine, batch: int, m: int, k: int, n: int) -> float:
    """Seconds of ``batch`` products ``(m, k) @ (k, n)``."""
    flops = 2 * batch * m * k * n
    # Each side fills the registers and caches of the kernel only in part.
    efficiency = math.prod(side / (side + machine.half_side) for side in (m, k, n))
    traffic = (batch * (k * n + m * n) + m * k) * machine.element_bytes
    bandwidth = machine.cache_bandwidth if traffic <= machine.cache_bytes else machine.bandwidth
    return max(flops / (machine.gemm_rate * efficiency), traffic / bandwidth) + machine.call_seconds


def _matrix_time(machine: Machine, step: SweepStep) -> float:
    """Seconds to permute a core's axes into the order of the step; 0 if they are in that order."""
    if step.axes == (0, 1, 2, 3):
        return 0.0
    return step.kept * step.summed / machine.transpose_rate + machine.call_seconds


def _step_time(machine: Machine, step: SweepStep, rows: int, training: bool) -> float:
    count = rows * step.before
    if step.after == 1:
        once = _product_time(machine, 1, count, step.summed, step.kept)
        return 4 * once if training else once
    once = _product_time(machine, count, step.kept, step.summed, step.after)
    moved = count * step.after * (step.summed + step.kept) / machine.transpose_rate
    # Narrow products are batched into one at the price of moving the states.
    once = min(once, _product_time(machine, 1, count * step.after, step.summed, step.kept) + moved)
    # Backward: the state again, and the gradients with respect to the state and to the matrix, which needs both moved.
    return 4 * once + moved if training else once


def schedule_time(
    schedule: Schedule, batch: int, tile: int, *, training: bool, merged_is_cached: bool, machine: Machine
) -> float:
    """Predicted seconds of one call for ``batch`` rows, ``tile`` at a time; forward and backward in training."""
    if len(schedule.sweeps) == 1:
        seconds = dense_time(*schedule.spec.padded_shape, batch, training=training, machine=machine)
    else:
        seconds = sum(_step_time(machine, step, tile, training) for step in schedule.sweeps) * math.ceil(batch / tile)
        if not merged_is_cached:
            seconds += sum(_matrix_time(machine, step) for step in schedule.sweeps) * (2 if training else 1)
    if not merged_is_cached:
        for merge in schedule.merges:
            (r, o, i, s), (_, p, j, t) = merge.left, merge.right
            once = _product_time(machine, 1, r * o * i, s, p * j * t)
            # The merged core is written once more, so that its out dims and its in dims stand side by side.
            once += math.prod(merge.result) / machine.transpose_rate
            seconds += 3 * once if training else once
    return seconds


def dense_time(out_features: int, in_features: int, batch: int, *, training: bool, machine: Machine) -> float:
    """Predicted seconds of the dense layer for ``batch`` rows."""
    once = _product_time(machine, 1, batch, in_features, out_features)
    return 3 * once if training else once


def low_rank_time(
    out_features: int, in_features: int, rank: int, batch: int, *, training: bool, machine: Machine
) -> float:
    """Predicted seconds of a product of two dense factors of this rank for ``batch`` rows."""
    first = dense_time(rank, in_features, batch, training=training, machine=machine)
    return first + dense_time(out_features, rank, batch, training=training, machine=machine)
