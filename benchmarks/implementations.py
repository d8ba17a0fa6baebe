"""Implementations compared in a cell: dense, low rank at equal parameters, this library, and every installed peer.

A peer that is not installed or cannot compute a cell is excluded, and the record stores the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from peers import PEERS, Function
from torch import Tensor, nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain import ChainSpec, MPOChain, MPOLinear

Maker = Callable[[MPOChain, Tensor], nn.Module | Function]


def random_chain(spec: ChainSpec, dtype: torch.dtype) -> MPOChain:
    """Random chain, the same at every call, scaled so that outputs are about as large as inputs."""
    torch.manual_seed(0)
    return MPOLinear(spec.in_features, spec.out_features, spec=spec, bias=False, dtype=dtype).chains[0]


def exact_matrix(chain: MPOChain) -> Tensor:
    """Dense matrix of a chain in float32, regardless of the dtype of its cores."""
    return MPOChain([core.float() for core in chain.cores], chain.spec).to_matrix()


def dense(chain: MPOChain, weight: Tensor) -> Function:
    return lambda x: F.linear(x, weight)


def low_rank(chain: MPOChain, weight: Tensor) -> Function:
    out, in_ = weight.shape
    rank = max(chain.spec.parameters // (out + in_), 1)
    left, right = weight.new_empty(out, rank).normal_(), weight.new_empty(rank, in_).normal_()
    return lambda x: F.linear(F.linear(x, right), left)


def predicted(chain: MPOChain, weight: Tensor) -> nn.Module:
    """Compact execution with the cost model's plan, without measurements."""
    return MPOLinear.from_chains(chain).set_execution(autotune=False)


def _measured(memory: mpo.planning.Memory) -> Maker:
    def make(chain: MPOChain, weight: Tensor) -> nn.Module:
        layer = MPOLinear.from_chains(chain)
        mpo.set_execution(layer, cache=memory == "fast", autotune=True)
        return layer

    return make


OWN: dict[str, Maker] = {
    "dense": dense,
    "low rank": low_rank,
    "compact": _measured("compact"),
    "fast": _measured("fast"),
    # Built after the measured ones, which also measure the machine constants for the cost model.
    "predicted": predicted,
}


@lru_cache(maxsize=1)
def _built(
    spec: ChainSpec, dtype: torch.dtype
) -> tuple[dict[str, nn.Module | Function], dict[str, str], MPOChain, Tensor]:
    """Build all implementations; cached because one chain is used at several batch sizes."""
    chain = random_chain(spec, dtype)
    exact = exact_matrix(chain)
    weight = exact.to(dtype)
    built: dict[str, nn.Module | Function] = {name: maker(chain, weight) for name, maker in OWN.items()}
    missing = {}
    for name, (module, maker) in PEERS.items():
        if find_spec(module) is None:
            missing[name] = f"{module} is not installed"
            continue
        try:
            built[name] = maker(chain)
        except Exception as error:  # any error of a peer excludes it
            missing[name] = f"{type(error).__name__}: {error}"[:200]
    return built, missing, chain, exact


def implementations(
    spec: ChainSpec, dtype: torch.dtype
) -> tuple[dict[str, nn.Module | Function], dict[str, str], MPOChain, Tensor]:
    """Return all implementations of one chain, reasons for the missing ones, the chain, and its float32 matrix."""
    built, missing, chain, exact = _built(spec, dtype)
    return dict(built), dict(missing), chain, exact
