"""What stands beside a chain in every cell: the dense layer, low rank at equal parameters, and each installed peer.

Every peer runs through its own best documented call. A peer that is not installed, or that cannot do a cell, is left
out of it with the reason kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpochain as mpo
from mpochain import ChainSpec, MPOChain, MPOLinear
from mpochain.planning.candidates import equation

Function = Callable[[Tensor], Tensor]
Maker = Callable[[ChainSpec, Tensor, MPOChain], nn.Module | Function]


def dense(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    return lambda x: F.linear(x, weight)


def low_rank(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    rank = max(spec.parameters // sum(spec.shape), 1)
    left, right = torch.randn(spec.out_features, rank), torch.randn(rank, spec.in_features)
    return lambda x: F.linear(F.linear(x, right), left)


def compact(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> nn.Module:
    return MPOLinear.from_chains(chain)


def fast(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> nn.Module:
    layer = MPOLinear.from_chains(chain)
    mpo.set_execution(layer, memory="fast")
    return layer


def _tltorch(implementation: str) -> Maker:
    def make(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> nn.Module:
        from tltorch import FactorizedLinear

        linear = nn.Linear(spec.in_features, spec.out_features, bias=False)
        with torch.no_grad():
            linear.weight.copy_(weight)
        return FactorizedLinear.from_linear(
            linear,
            auto_tensorize=False,
            in_tensorized_features=spec.in_dims,
            out_tensorized_features=spec.out_dims,
            factorization="blocktt",
            rank=(1, *spec.bonds, 1),
            implementation=implementation,
            bias=False,
        )

    return make


def torchtt(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    import torchtt

    tensor = weight.reshape(*spec.out_dims, *spec.in_dims)
    shape = list(zip(spec.out_dims, spec.in_dims, strict=True))
    matrix = torchtt.TT(tensor, shape=shape, eps=1e-12, rmax=spec.max_bond)
    return lambda x: (matrix @ x.reshape(-1, *spec.in_dims)).reshape(x.shape[0], -1)


def tntorch(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    from tntorch.matrix import TTMatrix, tt_multiply

    matrix = TTMatrix(weight.T.contiguous(), list(spec.bonds), list(spec.in_dims), list(spec.out_dims))
    return lambda x: tt_multiply(matrix, x)


def torch_mpo(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> nn.Module:
    from torch_mpo.layers import TTLinear

    layer = TTLinear(
        spec.in_features,
        spec.out_features,
        inp_modes=list(spec.in_dims),
        out_modes=list(spec.out_dims),
        tt_ranks=spec.max_bond,
        bias=False,
        init_method="from_matrix",
    )
    layer.from_matrix(weight)
    return layer


def opt_einsum(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    import opt_einsum

    expressions = {}

    def run(x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows not in expressions:
            expressions[rows] = opt_einsum.contract_expression(
                equation(spec.sites), (rows, *spec.in_dims), *spec.core_shapes, optimize="optimal"
            )
        return expressions[rows](x.reshape(rows, *spec.in_dims), *chain.cores).reshape(rows, -1)

    return run


def cotengra(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    import cotengra

    expressions = {}

    def run(x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows not in expressions:
            expressions[rows] = cotengra.einsum_expression(
                equation(spec.sites), (rows, *spec.in_dims), *spec.core_shapes, optimize="optimal"
            )
        return expressions[rows](x.reshape(rows, *spec.in_dims), *chain.cores).reshape(rows, -1)

    return run


def quimb(spec: ChainSpec, weight: Tensor, chain: MPOChain) -> Function:
    from quimb.tensor.contraction import array_contract_expression

    inputs, output = equation(spec.sites).split("->")
    expressions = {}

    def run(x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows not in expressions:
            expressions[rows] = array_contract_expression(
                inputs=[tuple(term) for term in inputs.split(",")],
                output=tuple(output),
                shapes=[(rows, *spec.in_dims), *spec.core_shapes],
                optimize="optimal",
            )
        return expressions[rows](x.reshape(rows, *spec.in_dims), *chain.cores).reshape(rows, -1)

    return run


OWN: dict[str, Maker] = {"dense": dense, "low rank": low_rank, "compact": compact, "fast": fast}

PEERS: dict[str, tuple[str, Maker]] = {
    "tltorch factorized": ("tltorch", _tltorch("factorized")),
    "tltorch reconstructed": ("tltorch", _tltorch("reconstructed")),
    "torchTT": ("torchtt", torchtt),
    "tntorch": ("tntorch", tntorch),
    "torch-mpo": ("torch_mpo", torch_mpo),
    "opt_einsum": ("opt_einsum", opt_einsum),
    "cotengra": ("cotengra", cotengra),
    "quimb": ("quimb", quimb),
}


@lru_cache(maxsize=1)
def _made(spec: ChainSpec) -> tuple[dict[str, nn.Module | Function], dict[str, str]]:
    """Kept for the batch sizes of one chain, since peers take long to decompose a large matrix."""
    weight = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)) / spec.in_features**0.5
    chain = mpo.decompose(weight, spec)
    made: dict[str, nn.Module | Function] = {name: maker(spec, weight, chain) for name, maker in OWN.items()}
    missing = {}
    for name, (module, maker) in PEERS.items():
        if find_spec(module) is None:
            missing[name] = f"{module} is not installed"
            continue
        try:
            made[name] = maker(spec, weight, chain)
        except Exception as error:  # whatever a peer raises is the reason it is not in the cell
            missing[name] = f"{type(error).__name__}: {error}"[:200]
    return made, missing


def implementations(spec: ChainSpec) -> tuple[dict[str, nn.Module | Function], dict[str, str]]:
    """All implementations of one chain of a random matrix, and why each missing one is missing."""
    made, missing = _made(spec)
    return dict(made), dict(missing)
