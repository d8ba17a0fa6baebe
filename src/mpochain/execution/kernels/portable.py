"""Portable kernel: only reshapes, permutes and products, which torch.export and torch.func can trace."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mpochain.execution.kernels.kernel import Kernel
from mpochain.execution.program import TORCH, Program
from mpochain.planning import Conditions, Schedule
from mpochain.planning.kernel_models import TiledModel

__all__ = ["Portable"]


class Portable(TiledModel, Kernel):
    """Any schedule, step by step with all rows at once, so that the batch may be symbolic.

    It is planned like a tiled sweep, so that exported, compiled and eager layers contract in the same order.
    """

    name = "portable"
    graphs = ("portable",)
    takes_cores = True

    def supports(self, schedule: Schedule, conditions: Conditions) -> bool:  # noqa: ARG002
        """True for every schedule."""
        return True

    def __call__(self, program: Program, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Run the merges, then the sweep."""
        schedule = program.schedule
        return schedule.sweep_padded(x, schedule.merge(operands, TORCH), TORCH)
