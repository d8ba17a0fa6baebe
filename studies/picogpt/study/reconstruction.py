"""Approximation errors of chains of trained weights, compared with low rank and with chains of random matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpochain import shapes
from mpochain.factorization import decompose
from mpochain.spec import ChainSpec
from studies.picogpt.model import PicoGPT

__all__ = ["reconstruction"]

_BONDS = (4, 8, 16, 32)


def reconstruction(model: PicoGPT) -> list[dict[str, Any]]:
    """Compute the relative Frobenius errors of chains for all linear layers of a dense model.

    Returns:
        One record per layer, number of sites and bond: the spec; its parameters; the error of the chain; the error
        of the largest rank with at most as many parameters, None if rank 1 has more; the error of the next rank; and
        the error of a chain of a random matrix.
    """
    records = []
    random: dict[ChainSpec, float] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight.detach().double()
        out, in_ = weight.shape
        for sites in (2, 3):
            dims = shapes.balanced(out, sites), shapes.balanced(in_, sites)
            for bond in _BONDS:
                spec = ChainSpec(*dims, bond)
                if spec not in random:
                    noise = torch.randn(out, in_, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                    random[spec] = _error(noise, spec)
                rank = spec.parameters // (out + in_)
                records.append(
                    {
                        "layer": name,
                        "shape": [out, in_],
                        "sites": sites,
                        "bond": bond,
                        "spec": spec.as_dict(),
                        "parameters": spec.parameters,
                        "error": _error(weight, spec),
                        "low_rank": _error(weight, shapes.low_rank(out, in_, rank)) if rank else None,
                        "low_rank_above": _error(weight, shapes.low_rank(out, in_, min(rank + 1, out, in_))),
                        "random": random[spec],
                    }
                )
    return records


def _error(matrix: Tensor, spec: ChainSpec) -> float:
    return float(decompose(matrix, spec, method="tt_svd").relative_error)
