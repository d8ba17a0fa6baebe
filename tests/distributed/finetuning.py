"""What each of two processes does to finetune one model on batches that they share; see test_finetuning.py."""

from __future__ import annotations

import os
import signal

import torch

import mpochain as mpo
from mpochain import FinetuneConfig
from mpochain.errors import MPOError
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


def finetuned(way, checkpoint=None, **changes):
    """Losses and tensors of a model finetuned in one of the ways."""
    model, teacher = models()
    if way == "idle":
        # Takes part in no step, as an expert that no token chooses.
        model.aside = torch.nn.Linear(3, 3, dtype=torch.float64)
        torch.nn.init.ones_(model.aside.weight)
        torch.nn.init.ones_(model.aside.bias)
    config = FinetuneConfig(**{**CONFIG, **WAYS[way], **changes})
    teacher = teacher if config.asks_teacher else None
    result = mpo.finetune(model, windows(), config=config, teacher=teacher, checkpoint=checkpoint, share=True)
    return result.losses, result.tokens, dict(model.state_dict())


def each_way(rank, folder):
    return {way: finetuned(way, folder / f"{way}.state") for way in WAYS}


def refusals(rank, folder):
    """The errors of calls that differ, or cannot be shared."""
    found = {}
    for name, changes in {"rate": {"learning_rate": 1e-2 + rank}, "small": {"batch_size": 1, "accumulate": 1}}.items():
        try:
            finetuned("labels", **changes)
        except MPOError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def everything(rank, folder):
    """The results of all functions above, by name."""
    return {work.__name__: work(rank, folder) for work in (each_way, refusals)}


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
    return finetuned("labels", folder / "state")
