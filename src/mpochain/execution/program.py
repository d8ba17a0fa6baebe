"""A plan as torch runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.kernels.compiled import compiled_sweep
from mpochain.execution.kernels.tiled import Steps, run_sweep, steps_of
from mpochain.planning import MergeStep, Schedule, Variant

__all__ = ["Program", "run_portable"]

# The operations schedules need, under the names of the array API; a plain namespace that compilers see through.
_XP = SimpleNamespace(
    reshape=torch.reshape,
    permute_dims=torch.permute,
    concat=torch.concat,
    broadcast_to=torch.broadcast_to,
    zeros_like=torch.zeros_like,
)


def run_portable(schedule: Schedule, x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """The schedule step by step in reshapes, permutes and products alone: what export and functorch see through."""
    return schedule.sweep(x, schedule.merge(cores, _XP), _XP)


@dataclass(frozen=True)
class Program:
    """A plan as torch runs it.

    Attributes:
        schedule: merges, then sweep.
        steps: the sizes of the sweep.
        tile: rows worked on at a time.
        panel: out entries of the last merge's left core made at a time, where the matrix is rebuilt; 0 for all.
        keeps_states: whether autograd saves the states, which is less work than computing them twice.
        only_views: whether the matrices of the sweep are the cores' own memory in another shape.
    """

    schedule: Schedule
    steps: Steps
    tile: int
    panel: int = 0
    keeps_states: bool = False
    _layout: tuple[tuple[int, tuple[int, ...] | None, int, int], ...] = field(init=False, repr=False)
    only_views: bool = field(init=False)

    def __post_init__(self) -> None:
        # Site, permutation if one is needed, and shape of each matrix, apart from the steps' methods: on the hot path.
        layout = tuple(
            (step.site, None if step.axes == (0, 1, 2, 3) else step.axes, step.kept, step.summed)
            for step in self.schedule.sweeps
        )
        object.__setattr__(self, "_layout", layout)
        views = not self.schedule.merges and all(axes is None for _, axes, _, _ in layout)
        object.__setattr__(self, "only_views", views)

    @classmethod
    def of(cls, variant: Variant) -> Program:
        """The program of a plan's variant."""
        panel = variant.panel if variant.panels > 1 else 0
        return cls(variant.schedule, steps_of(variant.schedule), variant.tile, panel, variant.keeps_states)

    def matrices(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Merged cores as the matrices ``(K, C)`` of the sweep's steps; differentiable."""
        merged = self.schedule.merge(cores, _XP) if self.schedule.merges else cores
        return [
            (merged[site] if axes is None else merged[site].permute(axes)).reshape(kept, summed)
            for site, axes, kept, summed in self._layout
        ]

    def __call__(self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``, from the cores; see :meth:`run`."""
        if self.panel and not torch.is_grad_enabled():
            return self._in_panels(x, cores, bias, onto)
        return self.run(x, self.matrices(cores), bias, onto)

    def run(self, x: Tensor, matrices: Sequence[Tensor], bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``.

        Args:
            x: the rows.
            matrices: those of :meth:`matrices`.
            bias: added to the result.
            onto: the sum of earlier terms, to which the result is added in place; only where no gradient is recorded.
        """
        spec = self.schedule.spec
        padded_out, padded_in = spec.padded_shape
        if padded_in != spec.in_features:
            x = F.pad(x, (0, padded_in - spec.in_features))
        padded = padded_out != spec.out_features
        if len(matrices) == 1:
            if not padded and onto is None:
                return F.linear(x, matrices[0], bias)
            if not padded and onto is not None and onto.dtype == x.dtype == matrices[0].dtype:
                return onto.addmm_(x, matrices[0].t())
            y = F.linear(x, matrices[0])
        elif torch.compiler.is_compiling():
            y = compiled_sweep(x, matrices, self.steps, self.tile)
        elif self.keeps_states and torch.is_grad_enabled():
            y = self._by_autograd(x, matrices)
        else:
            y = run_sweep(x, matrices, self.steps, self.tile, None if padded else onto)
            if y is onto:
                return y
        if padded:
            y = y[:, : spec.out_features]
        if onto is not None:
            return onto.add_(y)
        # Autocast makes y shorter than the bias; a plain sum would make it long again.
        return y if bias is None else y + bias.to(y.dtype)

    def _by_autograd(self, x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        rows, state = x.shape[0], x
        for matrix, (_, c, a, p) in zip(matrices, self.steps, strict=True):
            state = F.linear(state.reshape(rows * p, c), matrix) if a == 1 else matrix @ state.reshape(rows * p, c, a)
        return state.reshape(rows, self.schedule.spec.padded_shape[0])

    def _in_panels(self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """The matrix rebuilt a panel of rows at a time, each used while it is in cache: it is never whole."""
        dtype = autocast_dtype(x)
        if dtype is not None:
            # A product into a given output is not on autocast's list.
            x, cores = x.to(dtype), [core.to(dtype) for core in cores]
        spec = self.schedule.spec
        padded_out, padded_in = spec.padded_shape
        if padded_in != spec.in_features:
            x = F.pad(x, (0, padded_in - spec.in_features))
        merged = list(cores)
        *earlier, last = self.schedule.merges
        for step in earlier:
            k = step.position
            merged[k : k + 2] = [step(merged[k], merged[k + 1], _XP)]
        left, right = merged
        (r, o, i, s), p = last.left, last.right[1]
        y = x.new_empty(x.shape[0], padded_out)
        for start in range(0, o, self.panel):
            stop = min(start + self.panel, o)
            part = MergeStep(0, (r, stop - start, i, s), last.right)(left[:, start:stop], right, _XP)
            torch.mm(x, part.reshape((stop - start) * p, padded_in).t(), out=y[:, start * p : stop * p])
        if padded_out != spec.out_features:
            y = y[:, : spec.out_features]
        if onto is not None:
            return onto.add_(y)
        return y if bias is None else y.add_(bias)
