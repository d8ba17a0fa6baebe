"""Cost model of schedules: the longer of arithmetic and memory traffic (roofline), plus a cost per call.

``time = sum over steps of max(FLOPs / rate, bytes / bandwidth) + calls x overhead``

The FLOP rate of a matrix product depends strongly on its shape: batched products of small matrices reach a small
fraction of the rate of one large product.
"""

from __future__ import annotations

import math

from mpochain.planning.machine import Machine
from mpochain.planning.schedule import Schedule, SweepStep

__all__ = ["dense_time", "low_rank_time", "schedule_time"]


def _product_time(machine: Machine, batch: int, m: int, k: int, n: int) -> float:
    """Seconds of ``batch`` products ``(m, k) @ (k, n)``."""
    flops = 2 * batch * m * k * n
    # Short sides use the registers and caches only in part.
    efficiency = math.prod(side / (side + machine.half_side) for side in (m, k, n))
    traffic = (batch * (k * n + m * n) + m * k) * machine.element_bytes
    bandwidth = machine.cache_bandwidth if traffic <= machine.cache_bytes else machine.bandwidth
    return max(flops / (machine.gemm_rate * efficiency), traffic / bandwidth) + machine.call_seconds


def _matrix_time(machine: Machine, step: SweepStep) -> float:
    """Seconds to permute a core's axes to the order of the step; 0 if they have that order."""
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
    # Narrow products can be batched into one product, which costs moving the states.
    once = min(once, _product_time(machine, 1, count * step.after, step.summed, step.kept) + moved)
    # The backward pass recomputes the state, and computes gradients with respect to the state and the matrix; the
    # latter moves both operands.
    return 4 * once + moved if training else once


def schedule_time(
    schedule: Schedule, batch: int, tile: int, *, training: bool, merged_is_cached: bool, machine: Machine
) -> float:
    """Predicted seconds of a call with ``batch`` rows in tiles of ``tile`` rows; in training, forward and backward."""
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
            # The merged core is copied once more, to bring its out dims and its in dims together.
            once += math.prod(merge.result) / machine.transpose_rate
            seconds += 3 * once if training else once
    return seconds


def dense_time(out_features: int, in_features: int, batch: int, *, training: bool, machine: Machine) -> float:
    """Predicted seconds of the dense layer with ``batch`` rows."""
    once = _product_time(machine, 1, batch, in_features, out_features)
    return 3 * once if training else once


def low_rank_time(
    out_features: int, in_features: int, rank: int, batch: int, *, training: bool, machine: Machine
) -> float:
    """Predicted seconds of two dense factors of rank ``rank`` with ``batch`` rows."""
    first = dense_time(rank, in_features, batch, training=training, machine=machine)
    return first + dense_time(out_features, rank, batch, training=training, machine=machine)
