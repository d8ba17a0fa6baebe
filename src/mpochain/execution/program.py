"""Executable programs: a plan's schedule with its torch kernel and precomputed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpochain.planning import Machine, Schedule, Variant
from mpochain.planning.narrow_steps import least_batched

if TYPE_CHECKING:
    from mpochain.execution.kernels.kernel import Kernel

__all__ = ["TORCH", "Program", "Steps", "steps_of"]

# The operations that schedules need, under their array API names; a plain namespace, which compilers can trace.
TORCH = SimpleNamespace(
    reshape=torch.reshape,
    permute_dims=torch.permute,
    concat=torch.concat,
    broadcast_to=torch.broadcast_to,
    zeros_like=torch.zeros_like,
)

# For each step: kept K, summed C, after A, before, and the number of products from which they are batched into one.
# Plain integers, so that they can be arguments of an operator.
Steps = tuple[tuple[int, int, int, int, int], ...]


def steps_of(schedule: Schedule, machine: Machine) -> Steps:
    """The sizes of the sweep steps of a schedule."""
    return tuple(
        (
            step.kept,
            step.summed,
            step.after,
            step.before,
            least_batched(step.kept, step.summed, step.after, machine),
        )
        for step in schedule.sweeps
    )


@dataclass(frozen=True)
class Program:
    """A schedule with the kernel that runs it.

    Attributes:
        schedule: merges and sweep steps.
        kernel: the kernel that runs the schedule.
        tile: number of rows processed at a time.
        options: further sizes of the kernel, by name.
        machine: machine constants.
        steps: sizes of the sweep steps.
        only_views: True if the matrices of the sweep are views of the cores.
        is_padded: True if the dims multiply to more features than the chain has.
    """

    schedule: Schedule
    kernel: Kernel
    tile: int
    options: dict[str, int] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    steps: Steps = field(init=False, repr=False)
    only_views: bool = field(init=False, repr=False)
    is_padded: bool = field(init=False, repr=False)
    _layout: tuple[tuple[int, tuple[int, ...] | None, int, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Site, permutation if needed, and shape of each matrix; faster than the methods of the steps on the hot path.
        layout = tuple(
            (step.site, None if step.axes == (0, 1, 2, 3) else step.axes, step.kept, step.summed)
            for step in self.schedule.sweeps
        )
        views = not self.schedule.merges and all(axes is None for _, axes, _, _ in layout)
        spec = self.schedule.spec
        for name, value in (
            ("steps", steps_of(self.schedule, self.machine)),
            ("only_views", views and not self.kernel.takes_cores),
            ("is_padded", spec.padded_shape != spec.shape),
            ("_layout", layout),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, variant: Variant, kernel: Kernel, machine: Machine) -> Program:
        """The program for a variant of a plan."""
        return cls(variant.schedule, kernel, variant.tile, dict(variant.options), machine)

    def matrices(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """The matrices ``(K, C)`` of the sweep steps, from merged cores; differentiable."""
        merged = self.schedule.merge(cores, TORCH) if self.schedule.merges else cores
        return [
            (merged[site] if axes is None else merged[site].permute(axes)).reshape(kept, summed)
            for site, axes, kept, summed in self._layout
        ]

    def __call__(
        self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``, from the cores; see :meth:`run`."""
        return self.kernel.run(self, x, cores if self.kernel.takes_cores else self.matrices(cores), bias, onto)

    def run(
        self, x: Tensor, operands: Sequence[Tensor], bias: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``.

        Args:
            x: the rows.
            operands: the result of :meth:`matrices`, or the cores if the kernel takes cores.
            bias: added to the result.
            onto: the sum of earlier terms, to which the result is added in place; only if no gradient is recorded.
        """
        return self.kernel.run(self, x, operands, bias, onto)
