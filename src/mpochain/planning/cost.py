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

__all__ = ["DEFAULT_MACHINE", "Machine", "dense_time", "schedule_time"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a machine, for float32.

    Attributes:
        gemm_rate: FLOPs per second of one large matrix product.
        half_side: a side of this size halves the rate of a product.
        bandwidth: bytes per second, read and written.
        call_seconds: fixed cost of one product with its reshapes.
        element_bytes: size of one element.
    """

    gemm_rate: float = 1.8e11
    half_side: float = 12.0
    bandwidth: float = 4e10
    call_seconds: float = 4e-6
    element_bytes: int = 4


DEFAULT_MACHINE = Machine()

# A backward pass costs two products of the same size: one for the input, one for the matrix.
_TRAINING_FACTOR = 3


def _product_time(machine: Machine, batch: int, m: int, k: int, n: int) -> float:
    """Seconds of ``batch`` products ``(m, k) @ (k, n)``."""
    flops = 2 * batch * m * k * n
    # Each side fills the registers and caches of the kernel only in part.
    efficiency = math.prod(side / (side + machine.half_side) for side in (m, k, n))
    traffic = (batch * (k * n + m * n) + m * k) * machine.element_bytes
    return max(flops / (machine.gemm_rate * efficiency), traffic / machine.bandwidth) + machine.call_seconds


def _sweep_time(machine: Machine, step: SweepStep, batch: int) -> float:
    if step.after == 1:
        return _product_time(machine, 1, batch * step.before, step.summed, step.kept)
    return _product_time(machine, batch * step.before, step.kept, step.summed, step.after)


def schedule_time(
    schedule: Schedule, batch: int, *, training: bool, merged_is_cached: bool, machine: Machine = DEFAULT_MACHINE
) -> float:
    """Predicted seconds of one call (forward, or forward and backward) for ``batch`` rows."""
    seconds = sum(_sweep_time(machine, step, batch) for step in schedule.sweeps)
    if not merged_is_cached:
        for merge in schedule.merges:
            (r, o, i, s), (_, p, j, t) = merge.left, merge.right
            seconds += _product_time(machine, 1, r * o * i, s, p * j * t)
            # The merged core is written once more to bring out and in dims together.
            seconds += 2 * math.prod(merge.result) * machine.element_bytes / machine.bandwidth
    return seconds * (_TRAINING_FACTOR if training else 1)


def dense_time(
    out_features: int, in_features: int, batch: int, *, training: bool, machine: Machine = DEFAULT_MACHINE
) -> float:
    """Predicted seconds of the dense layer for ``batch`` rows."""
    seconds = _product_time(machine, 1, batch, in_features, out_features)
    return seconds * (_TRAINING_FACTOR if training else 1)
