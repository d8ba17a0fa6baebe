"""Processes that share every batch of a training: what they check before, and how their gradients meet."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from mpochain.surgery.fingerprint import fingerprint
from mpochain.train.config import FinetuneConfig
from mpochain.train.data import TrainingData

__all__ = ["require_alike", "with_mean_gradients"]


def require_alike(
    team: Team, model: nn.Module, teacher: nn.Module | None, data: TrainingData, config: FinetuneConfig
) -> None:
    """Compare what the processes of a team train, on what and how; nothing to do for one process.

    Args:
        team: the processes, which share every batch.
        model: the model.
        teacher: its teacher, if there is one.
        data: all examples.
        config: configuration of the training.

    Raises:
        ArgumentError: they differ, the same error in all processes; or a batch has fewer examples than there are
            processes.
    """
    if team.is_alone:
        return
    team.alike(
        {
            "the hash of the model's weights": fingerprint(model),
            "the hash of the teacher's weights": None if teacher is None else fingerprint(teacher),
            "the hash of the batches": data.sha256(),
            **config.model_dump(mode="json"),
        }
    )
    if config.batch_size < team.size:
        raise ArgumentError(
            f"{team.size} processes cannot share a batch of {config.batch_size}; give a batch_size of {team.size} or "
            "more, or start fewer processes"
        )


def with_mean_gradients(model: nn.Module) -> nn.Module:
    """The model within ``DistributedDataParallel``, so that gradients are means over the processes.

    Buffers are codes and positions, which are alike in all processes and stay, so they are not sent with every call.
    """
    current = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if current else "broadcast_buffers": False}
    # An expert, or a head, need not take part in every step.
    return DistributedDataParallel(model, find_unused_parameters=True, **options)
