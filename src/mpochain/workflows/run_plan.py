"""Prediction of the time, memory and traffic of a compression and a finetuning, before any of it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mpochain.compression import Interpolative
from mpochain.compression.statistics.damping import TRIED
from mpochain.compression.statistics.division import dealt_by_module
from mpochain.compression.statistics.moments import moment_bytes
from mpochain.compression.statistics.passes import kept_on_disk, memory_for_statistics, parts
from mpochain.compression.statistics.set_aside import sets_aside
from mpochain.compression.statistics.work import build_work, fit_work, moments_work
from mpochain.distributed import Team
from mpochain.errors import ArgumentError
from mpochain.workflows.model_sizes import ModelSizes

__all__ = ["Load", "Phase", "Resources", "planned"]

# Share of the rate of a large product that whole models reach in calibration and training (decision 80).
_SHARE_OF_RATE = 0.75

# Copies of the logits in a backward pass from sampled labels, and from those of a teacher.
_LOGITS_OF_CALIBRATION, _LOGITS_OF_FINETUNING = 4, 6

# Parameters of a training in float32: themselves, gradients and two moments; DDP adds buckets of gradients.
_STATES, _BUCKETS = 4, 1

_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class Resources:
    """What a run has.

    Attributes:
        processes: number of processes, one for each GPU.
        rate: FLOPs per second of a large float32 product in one process.
        own_bytes: memory of a process before it holds a model.
    """

    processes: int
    rate: float
    own_bytes: int


@dataclass(frozen=True)
class Load:
    """What a run does.

    Attributes:
        budget: share of the parameters of the linear layers that is kept.
        windows: calibration windows.
        steps: steps of the finetuning; 0 for none.
        batch_size: windows of a step, of all processes.
        stream: whether one block at a time is in memory.
        shard: whether the finetuning is sharded.
    """

    budget: float
    windows: int
    steps: int = 0
    batch_size: int = 4
    stream: bool = False
    shard: bool = False


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: what is done.
        seconds: time.
        peak_bytes: largest memory of a process.
        sent_bytes: bytes that a process sends to others, on average.
    """

    name: str
    seconds: float
    peak_bytes: int
    sent_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def planned(sizes: ModelSizes, load: Load, resources: Resources) -> list[Phase]:
    """Predict calibration, fits, and a finetuning if there is one.

    The compression is that of ``method="interpolative"``, in float32; the finetuning learns from the dense model.

    Args:
        sizes: the model.
        load: what is done.
        resources: what there is.

    Raises:
        ArgumentError: a number is out of range, or there are more processes than windows or modules to share.
    """
    if not 0 < load.budget < 1:
        raise ArgumentError(f"plan-run predicts low rank, for a share of the parameters such as 0.8, got {load.budget}")
    for name, number in (("processes", resources.processes), ("windows", load.windows), ("batch", load.batch_size)):
        if number < 1:
            raise ArgumentError(f"{name} must be at least 1, got {number}")
    if load.windows < resources.processes:
        raise ArgumentError(
            f"{resources.processes} processes cannot share {load.windows} calibration windows; give as many windows, "
            "or fewer processes"
        )
    if load.steps and load.batch_size < resources.processes:
        raise ArgumentError(
            f"{resources.processes} processes cannot share a batch of {load.batch_size}; give a larger one"
        )
    phases = _compression(sizes, load, resources)
    return [*phases, _finetuning(sizes, load, resources)] if load.steps else phases


def _compression(sizes: ModelSizes, load: Load, resources: Resources) -> list[Phase]:
    method, layers, team = Interpolative(), sizes.layers, Team(0, resources.processes)
    groups = [dict(sizes.layers)] if load.stream else list(parts(sizes.model, layers, method))
    # The process with the most windows, and the one with the most to fit.
    windows = -(-load.windows // team.size)
    aside = sets_aside(load.windows)
    work = {name: fit_work(target.shape, TRIED if aside else 1) for name, target in layers.items()}
    built = {name: build_work(target.shape) for name, target in layers.items()}
    owners = dealt_by_module({name: work[name] + built[name] for name in layers}, team)
    heaviest = max(
        range(team.size), key=lambda rank: sum(work[name] + built[name] for name in layers if owners[name] == rank)
    )
    own = [name for name in layers if owners[name] == heaviest]

    names, calibration = list(layers), 0.0
    for group in groups:
        # Gradients pass from the last layer to the first of the group, and blocks are computed once more for them.
        behind = 1 - names.index(next(iter(group))) / len(names)
        calibration += windows * sizes.flops * (1 + 2 * behind)
        rows = windows * sizes.window
        calibration += sum(moments_work(target.shape, rows, gradients=True) for target in group.values())
    moments = [_moment_bytes(group) for group in groups]
    on_disk = kept_on_disk(sizes.model, groups, method)
    states = sizes.window * sizes.hidden * _FLOAT32
    block = sizes.saved_bytes // sizes.blocks
    # Of hidden states in front of every block, one block and the logits.
    head = _LOGITS_OF_CALIBRATION * sizes.logits_bytes
    room = memory_for_statistics(sizes.model)
    kept = int(load.budget * sizes.layer_parameters) * sizes.element_bytes
    if load.stream:
        per_block = sum(moments) // sizes.blocks * (1 + aside)
        resident = sizes.block_bytes * 2
        peaks = resident + per_block + states + block + head, resident + per_block
    else:
        resident = sizes.model_bytes
        collected = max(moments) * (1 + aside if not on_disk else 1)
        peaks = (
            resident + collected + states * sizes.blocks + block + head,
            resident + room + (0 if on_disk else collected) + kept,
        )
    others = (team.size - 1) / team.size
    total = sum(moments) // _FLOAT32 * _FLOAT64 * (1 + aside)
    fitting = sum(work[name] + built[name] for name in own) / resources.rate
    return [
        Phase(
            "calibration",
            calibration / (_SHARE_OF_RATE * resources.rate),
            resources.own_bytes + peaks[0],
            int(others * total),
        ),
        Phase("fits and layers", fitting, resources.own_bytes + peaks[1], int(others * kept)),
    ]


def _finetuning(sizes: ModelSizes, load: Load, resources: Resources) -> Phase:
    processes = resources.processes
    windows = -(-load.batch_size // processes)
    linear = 2.0 * sizes.layer_parameters * sizes.window
    compressed = sizes.flops - (1 - load.budget) * linear
    flops = load.steps * windows * (3 * compressed + sizes.flops)
    parameters = sizes.parameters - int((1 - load.budget) * sizes.layer_parameters)
    teacher = sizes.model_bytes
    # The outputs of a compressed layer are kept in the order in which they are computed, too.
    outputs = sum(target.shape[0] for target in sizes.layers.values()) * sizes.window * _FLOAT32
    share = processes if load.shard else 1
    buckets = _BUCKETS if processes > 1 and not load.shard else 0
    peak = (
        (_STATES * parameters * _FLOAT32 + teacher) // share
        + buckets * parameters * _FLOAT32
        + windows * (sizes.saved_bytes + outputs + _LOGITS_OF_FINETUNING * sizes.logits_bytes)
        + (2 * sizes.block_bytes if load.shard else 0)
    )
    others = (processes - 1) / processes
    sent = (3 * parameters * _FLOAT32 + teacher if load.shard else 2 * parameters * _FLOAT32) * others * load.steps
    return Phase(
        f"finetuning, {load.steps} steps",
        flops / (_SHARE_OF_RATE * resources.rate),
        resources.own_bytes + peak,
        int(sent),
    )


def _moment_bytes(group: Mapping[str, Any]) -> int:
    return moment_bytes({name: target.module for name, target in group.items()}, gradients=True)
