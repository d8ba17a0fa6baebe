"""Peer libraries, built from the cores of the chain and run by their fastest documented call.

All hold the same numbers, so their outputs must agree, and none needs to decompose a matrix first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpochain import MPOChain
from mpochain.planning.candidates import equation

Function = Callable[[Tensor], Tensor]


def _tltorch(implementation: str) -> Callable[[MPOChain], nn.Module]:
    def make(chain: MPOChain) -> nn.Module:
        from tltorch import FactorizedLinear

        spec = chain.spec
        layer = FactorizedLinear(
            spec.in_dims,
            spec.out_dims,
            bias=False,
            factorization="blocktt",
            rank=(1, *spec.bonds, 1),
            implementation=implementation,
        ).to(chain.dtype)
        _fill(layer.weight.factors, chain.cores)
        return layer

    return make


def torchtt(chain: MPOChain) -> Function:
    """Product of torchTT's TT-matrix with a full tensor."""
    with warnings.catch_warnings():
        # At every import it warns about its missing C++ extension, which has solvers but no products.
        warnings.simplefilter("ignore")
        import torchtt

    spec = chain.spec
    matrix = torchtt.TT(list(chain.cores))
    return lambda x: (matrix @ x.reshape(-1, *spec.in_dims)).reshape(x.shape[0], -1)


def tntorch(chain: MPOChain) -> Function:
    """Product with tntorch's TT-matrix, transposed because tntorch multiplies rows from the right."""
    from tntorch.matrix import TTMatrix, tt_multiply

    spec = chain.spec
    cores = [core.transpose(1, 2).contiguous() for core in chain.cores]
    matrix = TTMatrix(cores, list(spec.bonds), list(spec.in_dims), list(spec.out_dims))
    return lambda x: tt_multiply(matrix, x)


def torch_mpo(chain: MPOChain) -> nn.Module:
    """Layer of torch-mpo, whose cores are matrices ``(r_left out, r_right in)``."""
    from torch_mpo.layers import TTLinear

    spec = chain.spec
    layer = TTLinear(
        spec.in_features,
        spec.out_features,
        inp_modes=list(spec.in_dims),
        out_modes=list(spec.out_dims),
        tt_ranks=[1, *spec.bonds, 1],
        bias=False,
    ).to(chain.dtype)
    _fill(layer.cores, [core.permute(0, 1, 3, 2).flatten(2).flatten(0, 1) for core in chain.cores])
    return layer


def _fill(parameters, values) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _expressions(chain: MPOChain, make: Callable[..., Callable[..., Tensor]]) -> Function:
    """Compile one expression per batch size by ``make(input shape, core shapes...)``."""
    spec, networks = chain.spec, {}

    def run(x: Tensor) -> Tensor:
        shape = x.shape[0], *spec.in_dims
        if shape not in networks:
            networks[shape] = make(shape, *spec.core_shapes)
        return networks[shape](x.reshape(shape), *chain.cores).reshape(x.shape[0], -1)

    return run


def opt_einsum(chain: MPOChain) -> Function:
    import opt_einsum

    terms = equation(chain.spec.sites)
    return _expressions(chain, lambda *shapes: opt_einsum.contract_expression(terms, *shapes, optimize="optimal"))


def cotengra(chain: MPOChain) -> Function:
    import cotengra

    terms = equation(chain.spec.sites)
    return _expressions(chain, lambda *shapes: cotengra.einsum_expression(terms, *shapes, optimize="optimal"))


def quimb(chain: MPOChain) -> Function:
    from quimb.tensor.contraction import array_contract_expression

    inputs, output = equation(chain.spec.sites).split("->")
    terms = [tuple(term) for term in inputs.split(",")]
    return _expressions(
        chain,
        lambda *shapes: array_contract_expression(
            inputs=terms, output=tuple(output), shapes=list(shapes), optimize="optimal"
        ),
    )


PEERS: dict[str, tuple[str, Callable[[MPOChain], nn.Module | Function]]] = {
    "tltorch factorized": ("tltorch", _tltorch("factorized")),
    "tltorch reconstructed": ("tltorch", _tltorch("reconstructed")),
    "torchTT": ("torchtt", torchtt),
    "tntorch": ("tntorch", tntorch),
    "torch-mpo": ("torch_mpo", torch_mpo),
    "opt_einsum": ("opt_einsum", opt_einsum),
    "cotengra": ("cotengra", cotengra),
    "quimb": ("quimb", quimb),
}
