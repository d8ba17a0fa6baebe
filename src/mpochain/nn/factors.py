"""The two factors of a layer of low rank, whatever form stores them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.linear_chain import LinearChain
from mpochain.shapes import low_rank

__all__ = ["balanced_linears", "low_rank_factors"]


def low_rank_factors(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """``(left, right)`` of shapes ``(out, r)`` and ``(r, in)`` whose product is the layer's weight, without its bias.

    Returns:
        The factors; None for a layer that is not a plain product of two.

    Example:
        >>> left, right = low_rank_factors(InterpolativeLinear(6, 4, rank=2))
        >>> left.shape, right.shape
        (torch.Size([4, 2]), torch.Size([2, 6]))
        >>> low_rank_factors(MPOLinear(8, 8, out_dims=(2, 4), in_dims=(2, 4), max_bond=2))
    """
    if isinstance(layer, InterpolativeLinear):
        weights = layer._weights()
        return None if weights is None else (layer._left(weights[1]), weights[0])
    if isinstance(layer, MPOLinear) and len(layer.specs) == 1:
        spec = layer.spec
        if (spec.out_dims, spec.in_dims) == ((layer.out_features, 1), (1, layer.in_features)):
            left, right = layer.cores[0]
            return left.reshape(layer.out_features, -1), right.reshape(-1, layer.in_features)
    return None


@torch.no_grad()
def balanced_linears(layer: nn.Module) -> LinearChain | None:
    """Two ``torch.nn.Linear`` with the function of a layer of low rank, both with the roots of its singular values.

    Returns:
        The new layer, which shares no memory; None for a layer that is not a plain product of two.

    Example:
        >>> layer = InterpolativeLinear(6, 4, rank=2)
        >>> new = balanced_linears(layer)
        >>> right, left = (module.weight for module in reversed(new.terms[0]))
        >>> torch.allclose(left @ right, layer.weight, atol=1e-6)
        True
        >>> torch.allclose(left.T @ left, right @ right.T, atol=1e-6)
        True
    """
    factors = low_rank_factors(layer)
    if factors is None:
        return None
    left, right = (factor.double() for factor in factors)
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    U, S, Vh = torch.linalg.svd(r_left @ r_right.T)
    root = S.sqrt()
    spec = low_rank(len(left), right.shape[1], len(S))
    trained = any(parameter.requires_grad for name, parameter in layer.named_parameters() if name != "bias")
    cores = [
        numbers.to(factors[0].dtype).reshape(shape).requires_grad_(trained)
        for numbers, shape in zip(
            (q_left @ (U * root), (root[:, None] * Vh) @ q_right.T), spec.core_shapes, strict=True
        )
    ]
    bias: Any = layer.bias
    return LinearChain.from_cores([(spec, cores)], bias).train(layer.training)
