"""Training step of a benchmark cell, forward and backward to the input and all cores, and the layers to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from baselines import PlainChain, Rebuild
from implementations import implementations
from states import rejected
from torch import Tensor, nn

from mpochain import ChainSpec

TRAINED = ("compact", "tltorch factorized", "tltorch reconstructed", "torch-mpo")
PEERS = TRAINED[1:]

# Autograd keeps the states and computes their gradients.
_STATES_ALIVE = 4


def layers(
    spec: ChainSpec, batch: int, dtype: torch.dtype, *, kept: int = _STATES_ALIVE
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the layers to train by name, and reasons for the missing ones."""
    built, missing, _, _ = implementations(spec, dtype)
    chain = built["compact"]
    trained = {
        "dense": nn.Linear(spec.in_features, spec.out_features, bias=False, dtype=dtype),
        **{name: built[name] for name in TRAINED if name in built},
        "rebuild": Rebuild(chain),
        "plain chain": PlainChain(chain),
    }
    missing = {name: why for name, why in missing.items() if name in PEERS}
    missing |= rejected(trained, spec, batch, kept=kept)
    return {name: layer for name, layer in trained.items() if name not in missing}, missing


def step(layer: nn.Module, inputs: Sequence[Tensor], grad: Tensor) -> Callable[[int], Tensor]:
    """Return a function that runs one training step on one of the inputs and returns the output."""
    parameters = list(layer.parameters())

    def run(k: int) -> Tensor:
        x = inputs[k % len(inputs)]
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        y = layer(x)
        y.backward(grad)
        return y

    return run
