"""A compressed model made dense again."""

from __future__ import annotations

from typing import Any

from torch import nn

from mpochain.nn.compressed import Compressed
from mpochain.nn.embeddings import RowEmbedding
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.replacement import replace_layers

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Put an ``nn.Linear`` or ``nn.Embedding`` of the same function in place of every compressed layer of a model.

    A head that shares the cores of an embedding shares the dense table too.

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
        return _dense(model)
    layers = list(compressed_layers(model).values())
    made: dict[nn.Module, nn.Module] = {layer: _dense(layer) for layer in layers}
    # By what is shared between them: the first of the cores, which no two untied layers have in common.
    tables = {id(next(layer.parameters())): made[layer] for layer in layers if isinstance(layer, RowEmbedding)}
    for layer in layers:
        table: Any = tables.get(id(next(layer.parameters())))
        if table is not None and not isinstance(layer, RowEmbedding):
            head: Any = made[layer]
            head.weight = table.weight
    replace_layers(model, made)
    return model


def _dense(layer: Compressed) -> nn.Module:
    return layer.to_embedding() if isinstance(layer, RowEmbedding) else layer.to_linear()
