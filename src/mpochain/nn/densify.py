"""A compressed model made dense again."""

from __future__ import annotations

from torch import nn

from mpochain.nn.replacement import replace_layers
from mpochain.nn.structure import Compressed, compressed_layers

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Put an ``nn.Linear`` of the same function in place of every compressed layer of a model.

    Args:
        model: changed in place, or a compressed layer itself, which is left as it is.

    Returns:
        The model, or the dense layer.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> to_dense(nn.Sequential(MPOLinear(4, 3, max_bond=2, bias=False)))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=False)
        )
    """
    if isinstance(model, Compressed):
        return model.to_linear()
    replace_layers(model, {layer: layer.to_linear() for layer in compressed_layers(model).values()})
    return model
