"""The two factors of a layer of low rank, whatever form stores them."""

from __future__ import annotations

from torch import Tensor, nn

from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear

__all__ = ["low_rank_factors"]


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
