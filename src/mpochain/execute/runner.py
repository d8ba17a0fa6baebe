"""Runs one chain in torch: the plan of each batch size is looked up, never searched, after its first use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpochain.execute.operator import compiled_sweep
from mpochain.execute.sweep import NARROW, Steps, run_sweep, steps_of
from mpochain.planning import ContractionPlan, Memory, Schedule, plan
from mpochain.planning.plan import batch_bucket
from mpochain.spec import ChainSpec

__all__ = ["ChainRunner", "Program", "run_portable"]

# The operations schedules need, under the names of the array API; a plain namespace that compilers see through.
_XP = SimpleNamespace(
    reshape=torch.reshape,
    permute_dims=torch.permute,
    concat=torch.concat,
    broadcast_to=torch.broadcast_to,
    zeros_like=torch.zeros_like,
)

# Elements of all states of a sweep up to which autograd may save them in training: 1 MiB in float32, and 32 MiB where
# the last step is narrow, since its states are dear to compute again and few beside input and output.
_SMALL_STATES = 1 << 18
_SMALL_STATES_NARROW = 1 << 23

# Batch that traced graphs are planned for: their batch is symbolic, so one plan has to serve every size.
_TRACED_BATCH = 256


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
        only_views: whether the matrices of the sweep are the cores' own memory in another shape.
    """

    schedule: Schedule
    steps: Steps
    tile: int
    _layout: tuple[tuple[int, tuple[int, ...] | None, int, int], ...] = field(init=False, repr=False)
    only_views: bool = field(init=False)
    _autograd_rows: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Site, permutation if one is needed, and shape of each matrix, apart from the steps' methods: on the hot path.
        layout = tuple(
            (step.site, None if step.axes == (0, 1, 2, 3) else step.axes, step.kept, step.summed)
            for step in self.schedule.sweeps
        )
        object.__setattr__(self, "_layout", layout)
        views = not self.schedule.merges and all(axes is None for _, axes, _, _ in layout)
        object.__setattr__(self, "only_views", views)
        saved = sum(step.before * step.after * step.summed for step in self.schedule.sweeps)
        narrow = 1 < self.schedule.sweeps[-1].after < NARROW
        limit = _SMALL_STATES_NARROW if narrow else _SMALL_STATES
        object.__setattr__(self, "_autograd_rows", limit // saved)

    @classmethod
    def of(cls, made: ContractionPlan) -> Program:
        """The program of a plan."""
        return cls(made.schedule, steps_of(made.schedule), made.tile)

    def matrices(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """Merged cores as the matrices ``(K, C)`` of the sweep's steps; differentiable."""
        merged = self.schedule.merge(cores, _XP) if self.schedule.merges else cores
        return [
            (merged[site] if axes is None else merged[site].permute(axes)).reshape(kept, summed)
            for site, axes, kept, summed in self._layout
        ]

    def _by_autograd(self, x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """The sweep step by step, its few states saved by autograd, which is less work than computing them twice."""
        rows, state = x.shape[0], x
        for matrix, (_, c, a, p) in zip(matrices, self.steps, strict=True):
            state = state.reshape(rows * p, c) @ matrix.t() if a == 1 else matrix @ state.reshape(rows * p, c, a)
        return state.reshape(rows, self.schedule.spec.padded_shape[0])

    def run(self, x: Tensor, matrices: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``."""
        spec = self.schedule.spec
        padded_out, padded_in = spec.padded_shape
        if padded_in != spec.in_features:
            x = F.pad(x, (0, padded_in - spec.in_features))
        if len(matrices) == 1:
            if padded_out == spec.out_features:
                return F.linear(x, matrices[0], bias)
            y = F.linear(x, matrices[0])
        elif torch.compiler.is_compiling():
            y = compiled_sweep(x, matrices, self.steps, self.tile)
        elif x.shape[0] <= self._autograd_rows and torch.is_grad_enabled():
            y = self._by_autograd(x, matrices)
        else:
            y = run_sweep(x, matrices, self.steps, self.tile)
        if padded_out != spec.out_features:
            y = y[:, : spec.out_features]
        # Autocast makes y shorter than the bias; a plain sum would make it long again.
        return y if bias is None else y + bias.to(y.dtype)


class _OptimizerSteps:
    """Counts the steps of every optimiser: fused ones change parameters without counting a new version of them."""

    def __init__(self) -> None:
        self.count = 0
        self._watching = False

    def watch(self) -> None:
        """Begin to count; done once, when the first chain is set to fast execution."""
        if not self._watching:
            self._watching = True
            register_optimizer_step_post_hook(self._counted)

    def _counted(self, *_: object) -> None:
        self.count += 1


_STEPS = _OptimizerSteps()


class ChainRunner:
    """Plans and runs a chain for whatever batch comes.

    Args:
        spec: the chain.
        memory: ``"compact"`` keeps nothing but the cores; ``"fast"`` keeps merged cores between calls that need no
            gradient, up to the dense matrix.
    """

    def __init__(self, spec: ChainSpec, memory: Memory = "compact") -> None:
        self.spec = spec
        self.memory: Memory = memory
        self._reset()

    def _reset(self) -> None:
        if self.memory == "fast":
            _STEPS.watch()
        self._programs: dict[tuple[int, bool], Program] = {}
        self._kept: dict[tuple[int, bool], tuple[tuple[object, ...], list[Tensor]]] = {}
        # Made ahead, so that a traced forward meets a finished plan and no search.
        self._traced = Program.of(plan(self.spec, _TRACED_BATCH, mode="inference", memory="compact"))

    def set_memory(self, memory: Memory) -> None:
        """Choose between compact and fast execution; drops what was kept.

        Raises:
            SpecError: neither ``"compact"`` nor ``"fast"``.
        """
        plan(self.spec, 1, memory=memory)
        self.memory = memory
        self._reset()

    def plan(self, rows: int, *, training: bool) -> ContractionPlan:
        """The plan used for ``rows`` input rows."""
        # With gradients the merges must be part of the graph at every call, so nothing can be kept.
        memory: Memory = "compact" if training else self.memory
        return plan(self.spec, batch_bucket(rows), mode="training" if training else "inference", memory=memory)

    def __call__(self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            if torch.compiler.is_exporting() or not torch.compiler.is_compiling():
                y = run_portable(self._traced.schedule, x, cores)
                return y if bias is None else y + bias.to(y.dtype)
            return self._traced.run(x, self._traced.matrices(cores), bias)
        rows, training = x.shape[0], torch.is_grad_enabled()
        # The same arithmetic as batch_bucket, spared a call on the hot path.
        key = (rows - 1).bit_length() if rows > 1 else 0, training
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = Program.of(self.plan(rows, training=training))
        if not training and program.only_views:
            return program.run(x, self._views(key, program, cores), bias)
        if training or self.memory == "compact":
            return program.run(x, program.matrices(cores), bias)
        return program.run(x, self._cached_matrices(key, program, cores), bias)

    def _views(self, key: tuple[int, bool], program: Program, cores: Sequence[Tensor]) -> list[Tensor]:
        """The cores in the shapes of the sweep, kept between calls: they hold no memory of their own.

        A change in place shows in a view; a core that was replaced has another address, which the old memory cannot
        be given again while a view holds it.
        """
        state = tuple([(core.data_ptr(), core.dtype) for core in cores])
        kept = self._kept.get(key)
        if kept is None or kept[0] != state:
            matrices = [matrix.detach() for matrix in program.matrices(cores)]
            # A core whose memory is not in order was copied, and a copy would not see the next change.
            if not all(core.is_contiguous() for core in cores):
                return matrices
            kept = self._kept[key] = state, matrices
        return kept[1]

    def _cached_matrices(self, key: tuple[int, bool], program: Program, cores: Sequence[Tensor]) -> list[Tensor]:
        """The matrices of fast execution, made again when a core changed.

        A tensor's version counts its changes in place (``load_state_dict``, edits), optimiser steps are counted for
        all; its address, type and device change when it is replaced (``.to``, assignment).
        """
        if any(core.is_inference() for core in cores):
            return program.matrices(cores)  # they count no versions, so a change could not be seen
        own = ((id(core), core._version, core.data_ptr(), core.dtype, core.device) for core in cores)
        state = (_STEPS.count, *own)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == state:
            return kept[1]
        matrices = [matrix.contiguous() for matrix in program.matrices(cores)]
        self._kept[key] = state, matrices
        return matrices

    # Copies and pickles carry the choice, not the cache: plans are made again where they are used.
    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "memory": self.memory}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()
