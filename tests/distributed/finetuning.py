"""What each of two processes does to finetune one model on batches that they share; see test_finetuning.py."""

from __future__ import annotations

import os
import signal
from unittest.mock import patch

import torch

import mpochain as mpo
from mpochain import FinetuneConfig
from mpochain.distributed import gathered, local_part, shard_blocks
from mpochain.errors import MPOError
from mpochain.train import loop, state
from mpochain.train.stored import read_record
from tests.distributed import compressing

# Batches of six windows, of which each process takes three in two unequal parts.
CONFIG = {"steps": 4, "batch_size": 6, "learning_rate": 1e-2, "accumulate": 2, "seed": 3, "checkpoint_every": 1}
WAYS = {
    "teacher": {},
    "labels": {"distillation": 0.0, "trainable": "all"},
    "named": {"trainable": ["re:model.layers.1.*"]},
    "hidden": {"hidden": 1.0, "hidden_layers": ["model.layers.0"]},
    "uneven": {"batch_size": 3, "accumulate": 3},
    "idle": {"trainable": "all"},
}


def models():
    """A compressed model in float64, and its teacher."""
    teacher = compressing.network(torch.float64)
    model = compressing.network(torch.float64)
    mpo.compress(model, 0.6, method="svd")
    return model, teacher


def windows():
    """Windows of which some have fewer targets than others."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(compressing.VOCABULARY, (12, 16), generator=generator)
    labels = tokens.clone()
    labels[::3, :9] = -100
    return {"input_ids": tokens, "labels": labels}


def finetuned(way, checkpoint=None, shards=False, **changes):
    """Losses and tensors of a model finetuned in one of the ways."""
    model, teacher = models()
    if way == "idle":
        # Takes part in no step, as an expert that no token chooses.
        model.aside = torch.nn.Linear(3, 3, dtype=torch.float64)
        torch.nn.init.ones_(model.aside.weight)
        torch.nn.init.ones_(model.aside.bias)
    config = FinetuneConfig(**{**CONFIG, **WAYS[way], **changes})
    teacher = teacher if config.asks_teacher else None
    if shards:
        shard_blocks(model)
        if teacher is not None:
            shard_blocks(teacher)
    result = mpo.finetune(model, windows(), config=config, teacher=teacher, checkpoint=checkpoint, share=True)
    return result.losses, result.tokens, gathered(model.state_dict(), keeps=True)


def each_way(rank, folder):
    return {way: finetuned(way, folder / f"{way}.state") for way in WAYS}


def in_shards(rank, folder):
    """Each way with sharded models, and again from states of one process and of shards at half of the steps."""
    results = {way: finetuned(way, folder / f"{way}.shards", shards=True) for way in WAYS if way != "idle"}
    for name, writes, reads in (("to shards", False, True), ("from shards", True, False), ("shards", True, True)):
        state = folder / f"{name}.state"
        results[f"stopped, {name}"] = stopped("labels", state, shards=writes)
        results[name] = finetuned("labels", state, shards=reads)
    return results


def stopped(way, checkpoint, **named):
    """A training that ends after two steps, with its state written."""
    written = []

    def save_state(*arguments, **options):
        state.save_state(*arguments, **options)
        written.append(1)
        if len(written) == 2:
            raise InterruptedError

    with patch.object(loop, "save_state", save_state):
        try:
            finetuned(way, checkpoint, **named)
        except InterruptedError:
            return read_record(checkpoint)["result"]["steps"]
    return None


def sizes(rank, folder):
    """Bytes of the parameters of sharded models in this process, and in one piece."""
    model = compressing.network(torch.float32)
    mpo.compress(model, 0.6, method="svd")
    blocks = [mpo.MPOLinear(64, 64, sites=3, max_bond=8, bias=False) for _ in range(2)]
    chains = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.ModuleList(blocks)]))
    results = []
    for network in (model, chains):
        total = sum(parameter.nbytes for parameter in network.parameters())
        shard_blocks(network)
        results.append((sum(local_part(parameter).nbytes for parameter in network.parameters()), total))
    return results


def refusals(rank, folder):
    """The errors of calls that differ, or cannot be shared."""
    found = {}
    for name, changes in {"rate": {"learning_rate": 1e-2 + rank}, "small": {"batch_size": 1, "accumulate": 1}}.items():
        try:
            finetuned("labels", **changes)
        except MPOError as error:
            found[name] = f"{type(error).__name__}: {error}"
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).bfloat16())
    scalar = torch.nn.Linear(4, 4)
    scalar.scale = torch.nn.Parameter(torch.zeros(()))
    container = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    for name, network in {"types": model, "scalar": scalar, "container": container}.items():
        try:
            shard_blocks(network)
        except MPOError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def everything(rank, folder):
    """The results of all functions above, by name."""
    return {work.__name__: work(rank, folder) for work in (each_way, in_shards, sizes, refusals)}


def killed(rank, folder):
    """A training in which the second process is killed after two steps."""
    steps = []
    clip = torch.nn.utils.clip_grad_norm_

    def counted(*arguments, **named):
        steps.append(1)
        if rank == 1 and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return clip(*arguments, **named)

    torch.nn.utils.clip_grad_norm_ = counted
    return finetuned("labels", folder / "state", shards=(folder / "in shards").exists())
