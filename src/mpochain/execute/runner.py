"""Runs one chain in torch: the plan of each batch size is looked up, never searched, after its first use."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.planning import ContractionPlan, Memory, Schedule, plan
from mpochain.planning.plan import batch_bucket
from mpochain.spec import ChainSpec

__all__ = ["ChainRunner", "run_schedule"]

# The operations schedules need, under the names of the array API; a plain namespace that compilers see through.
_XP = SimpleNamespace(
    reshape=torch.reshape,
    permute_dims=torch.permute,
    concat=torch.concat,
    broadcast_to=torch.broadcast_to,
    zeros_like=torch.zeros_like,
)

# Batch that traced graphs are planned for: their batch is symbolic, so one plan has to serve every size.
_TRACED_BATCH = 256


def run_schedule(schedule: Schedule, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """``x (rows, in_features)`` to ``(rows, out_features)``, the bias joined to the last product where it can be."""
    merged = schedule.merge(cores, _XP)
    only = schedule.sweeps[0]
    if len(schedule.sweeps) == 1 and schedule.spec.padded_shape == schedule.spec.shape:
        return F.linear(x, only.matrix(merged[0], _XP), bias)
    y = schedule.sweep(x, merged, _XP)
    # Autocast makes y shorter than the bias; a plain sum would make it long again.
    return y if bias is None else y + bias.to(y.dtype)


class ChainRunner:
    """Plans and runs a chain for whatever batch comes.

    Args:
        spec: the chain.
        memory: ``"compact"``; cached folded cores belong to ``"fast"`` execution.
    """

    def __init__(self, spec: ChainSpec, memory: Memory = "compact") -> None:
        self.spec = spec
        self.memory: Memory = memory
        self._reset()

    def _reset(self) -> None:
        self._schedules: dict[tuple[int, bool], Schedule] = {}
        # Made ahead, so that a traced forward meets a finished plan and no search.
        self._traced = plan(self.spec, _TRACED_BATCH, mode="inference", memory=self.memory).schedule

    def plan(self, rows: int, *, training: bool) -> ContractionPlan:
        """The plan used for ``rows`` input rows."""
        return plan(self.spec, batch_bucket(rows), mode="training" if training else "inference", memory=self.memory)

    def __call__(self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``."""
        if torch.compiler.is_compiling():
            return run_schedule(self._traced, x, cores, bias)
        rows, training = x.shape[0], torch.is_grad_enabled()
        # The same arithmetic as batch_bucket, spared a call on the hot path.
        key = (rows - 1).bit_length() if rows > 1 else 0, training
        schedule = self._schedules.get(key)
        if schedule is None:
            schedule = self._schedules[key] = self.plan(rows, training=training).schedule
        return run_schedule(schedule, x, cores, bias)

    # Copies and pickles carry the choice, not the cache: plans are made again where they are used.
    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "memory": self.memory}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()
