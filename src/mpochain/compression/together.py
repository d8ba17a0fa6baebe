"""What processes that compress one model together check before, and do one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from mpochain.compression.methods import method_of
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.passes import require_batches
from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from mpochain.surgery.fingerprint import fingerprint, fingerprint_of_data
from mpochain.system.folders import folder_lock

__all__ = ["alone_with", "in_turn", "require_alike"]

Value = TypeVar("Value")


def require_alike(
    team: Team, model: nn.Module, calibration: Iterable[Any] | None, held_out: Iterable[Any] | None, **arguments: Any
) -> None:
    """Compare model, data and arguments of all processes, by hashes; nothing to do for one process.

    Raises:
        ArgumentError: they differ, the same error in all processes; or an argument is for a single process.
    """
    if team.is_alone:
        return
    described: dict[str, Any] = {}
    with team.together():
        way = method_of(arguments.pop("method"), arguments["budget"])
        described = {name: repr(value) for name, value in arguments.items()}
        described["method"] = f"{type(way).__module__}:{type(way).__qualname__}"
        described["settings of the method"] = fingerprint_of_data([list(way.settings)])
        _require_backend(model)
        described["the hash of the model's weights"] = fingerprint(model)
        for name, batches in (("calibration", calibration), ("held_out", held_out)):
            if batches is not None:
                # Hashing is no pass over the data that should be reported as one.
                quiet = getattr(batches, "uncounted", batches)
                described[f"the hash of {name}="] = fingerprint_of_data(require_batches(quiet, name))
    team.alike(described)
    if arguments["sequential"]:
        raise ArgumentError(
            "sequential=True corrects block after block, which several processes cannot share; leave out one of them, "
            "sequential= or share="
        )


def _require_backend(model: nn.Module) -> None:
    """Refuse a group that cannot send tensors of the device that the model is on."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    backends = str(dist.get_backend_config())
    if f"{device}:" not in backends:
        raise ArgumentError(
            f"the process group ({backends}) cannot send tensors on {device}, where the model is; initialise it with "
            "backend='cpu:gloo,cuda:nccl'"
        )


def in_turn(team: Team, work: Callable[[], Value]) -> Value | None:
    """Do work in the first process, then in all others, which find its files."""
    result: Value | None = None
    for first in (True, False):
        with team.together():
            if team.is_first is first:
                result = work()
    return result


@contextmanager
def alone_with(checkpoint: Path | str | CompressionState | None, team: Team) -> Iterator[None]:
    """Be the only run that writes to a checkpoint; who opened the state already sees to that."""
    with ExitStack() as held:
        with team.together():
            if team.is_first and checkpoint is not None and not isinstance(checkpoint, CompressionState):
                held.enter_context(folder_lock(Path(checkpoint)))
        yield
