"""Predicted time of a schedule: arithmetic or memory traffic, whichever is longer, plus a cost per call.

``time = sum over steps of max(FLOPs / rate, bytes / bandwidth) + calls x overhead``

The rate of a matrix product depends on its shape far more than its FLOPs do: batched products of small matrices reach
a small part of what one large product reaches. The constants here are defaults of a two-core AVX-512 machine; ratios
between them matter, not their absolute size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpochain.planning.schedule import Schedule, SweepStep

__all__ = ["DEFAULT_MACHINE", "Machine", "dense_time", "low_rank_time", "schedule_time", "tile_rows"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a machine, for float32.

    Attributes:
        gemm_rate: FLOPs per second of one large matrix product.
        half_side: a side of this size halves the rate of a product.
        cache_bytes: what stays in the cache close to the cores.
        cache_bandwidth: bytes per second, read and written, within that cache.
        bandwidth: the same beyond it.
        transpose_rate: elements per second of a copy that exchanges two axes.
        call_seconds: fixed cost of one product with its reshapes.
        element_bytes: size of one element.
    """

    gemm_rate: float = 1.9e11
    half_side: float = 8.0
    cache_bytes: int = 1 << 22
    cache_bandwidth: float = 1.5e11
    bandwidth: float = 3e10
    transpose_rate: float = 8e8
    call_seconds: float = 4e-6
    element_bytes: int = 4


DEFAULT_MACHINE = Machine()

_SMALLEST_TILE = 16


def tile_rows(schedule: Schedule, batch: int, machine: Machine = DEFAULT_MACHINE) -> int:
    """Rows to work on at a time so that the states of the sweep stay in cache: a power of two, or all of them.

    Measured for 4096x4096, two sites, χ=4, 1,024 rows: 28 ms in tiles of 64 (5 MiB), 37 ms in tiles of 256, over 45 ms
    untiled; tiles of 16 and of 64 are within 4 %.
    """
    if len(schedule.sweeps) == 1:
        return batch
    widest = max(step.before * step.after * (step.summed + step.kept) for step in schedule.sweeps)
    fitting = max(machine.cache_bytes // (widest * machine.element_bytes), 1)
    tile = max(1 << (fitting.bit_length() - 1), _SMALLEST_TILE)
    return tile if batch > 2 * tile else batch


def _product_time(machine: Machine, batch: int, m: int, k: int, n: int) -> float:
    """Seconds of ``batch`` products ``(m, k) @ (k, n)``."""
    flops = 2 * batch * m * k * n
    # Each side fills the registers and caches of the kernel only in part.
    efficiency = math.prod(side / (side + machine.half_side) for side in (m, k, n))
    traffic = (batch * (k * n + m * n) + m * k) * machine.element_bytes
    bandwidth = machine.cache_bandwidth if traffic <= machine.cache_bytes else machine.bandwidth
    return max(flops / (machine.gemm_rate * efficiency), traffic / bandwidth) + machine.call_seconds


def _matrix_time(machine: Machine, step: SweepStep) -> float:
    """Seconds to bring a core's axes into the order of the step; nothing where they are in it."""
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
    # Narrow states are folded into one product at the price of moving them.
    once = min(once, _product_time(machine, 1, count * step.after, step.summed, step.kept) + moved)
    # Backward: the state again, the gradient of the state, and that of the matrix, for which both are moved.
    return 4 * once + moved if training else once


def schedule_time(
    schedule: Schedule, batch: int, *, training: bool, merged_is_cached: bool, machine: Machine = DEFAULT_MACHINE
) -> float:
    """Predicted seconds of one call (forward, or forward and backward) for ``batch`` rows."""
    if len(schedule.sweeps) == 1:
        seconds = dense_time(*schedule.spec.padded_shape, batch, training=training, machine=machine)
    else:
        tile = tile_rows(schedule, batch, machine)
        seconds = sum(_step_time(machine, step, tile, training) for step in schedule.sweeps) * math.ceil(batch / tile)
        if not merged_is_cached:
            seconds += sum(_matrix_time(machine, step) for step in schedule.sweeps) * (2 if training else 1)
    if not merged_is_cached:
        for merge in schedule.merges:
            (r, o, i, s), (_, p, j, t) = merge.left, merge.right
            once = _product_time(machine, 1, r * o * i, s, p * j * t)
            # The merged core is written once more to bring out and in dims together.
            once += math.prod(merge.result) / machine.transpose_rate
            seconds += 3 * once if training else once
    return seconds


def dense_time(
    out_features: int, in_features: int, batch: int, *, training: bool, machine: Machine = DEFAULT_MACHINE
) -> float:
    """Predicted seconds of the dense layer for ``batch`` rows."""
    once = _product_time(machine, 1, batch, in_features, out_features)
    return 3 * once if training else once


def low_rank_time(
    out_features: int, in_features: int, rank: int, batch: int, *, training: bool, machine: Machine = DEFAULT_MACHINE
) -> float:
    """Predicted seconds of a product of two dense factors of this rank for ``batch`` rows."""
    first = dense_time(rank, in_features, batch, training=training, machine=machine)
    return first + dense_time(out_features, rank, batch, training=training, machine=machine)
