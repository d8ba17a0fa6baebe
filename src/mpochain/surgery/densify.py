"""Conversion of a compressed model back to dense layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from mpochain.nn import CompressedLayer, RowEmbedding
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.replacement import replace_layers

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Replace every compressed layer of a model by the equivalent ``nn.Linear`` or ``nn.Embedding``.

    A head that shares the cores of an embedding shares its dense table afterwards.

    Args:
        model: changed in place. If it is itself a compressed layer, it is not changed.

    Returns:
        The model, or the dense layer.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> to_dense(nn.Sequential(MPOLinear(4, 3, max_bond=2, bias=False)))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=False)
        )
    """
    if isinstance(model, CompressedLayer):
        return model.to_dense()
    layers = list(compressed_layers(model).values())
    dense: dict[nn.Module, nn.Module] = {layer: layer.to_dense() for layer in layers}
    # Tied layers share their first parameter; untied layers never do.
    tables = {id(next(layer.parameters())): dense[layer] for layer in layers if isinstance(layer, RowEmbedding)}
    for layer in layers:
        table: Any = tables.get(id(next(layer.parameters())))
        if table is not None and not isinstance(layer, RowEmbedding):
            head: Any = dense[layer]
            head.weight = table.weight
    replace_layers(model, dense)
    return model
