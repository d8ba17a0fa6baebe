"""Conversion of a compressed model back to dense layers."""

from __future__ import annotations

from itertools import chain
from typing import Any, cast

from torch import nn

from mpochain.nn import CompressedLayer
from mpochain.surgery.experts import fuse_experts
from mpochain.surgery.finding import compressed_layers, require_module
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.tying import state_ties
from mpochain.surgery.wrappers import require_replaceable_in, unwrapped

__all__ = ["to_dense"]


def to_dense(model: nn.Module) -> nn.Module:
    """Replace every compressed layer of a model by the equivalent dense layer, of the type that it had.

    A GPT-2 model, for example, gets its ``Conv1D`` layers back, so that ``save_pretrained`` writes what
    ``from_pretrained`` reads. A layer that never replaced a dense one becomes a ``nn.Linear`` or ``nn.Embedding``.
    Experts of a mixture whose layers are all dense are fused again, as transformers holds them. Frozen weights and
    biases stay frozen. A head that shares the cores of an embedding shares its dense table
    afterwards.

    Args:
        model: changed in place. If it is itself a compressed layer, it is not changed.

    Returns:
        The model, or the dense layer.

    Raises:
        ArgumentError: a compressed layer has hooks or the like, which would be lost, or is inside a wrapper that would
            not notice its replacement, such as ``DistributedDataParallel``.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> to_dense(nn.Sequential(MPOLinear(4, 3, max_bond=2, bias=False)))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=False)
        )
    """
    require_module(model)
    if isinstance(unwrapped(model), CompressedLayer):
        return cast("CompressedLayer", unwrapped(model)).to_dense()
    layers = list(compressed_layers(model).values())
    require_replaceable_in(model, set(layers))
    dense: dict[nn.Module, nn.Module] = {layer: layer.to_dense() for layer in layers}
    # Tied layers share their first tensor; untied layers never do.
    tables = {_first_tensor(layer): dense[layer] for layer in layers if layer.looks_up}
    for layer in layers:
        table: Any = tables.get(_first_tensor(layer))
        if table is not None and not layer.looks_up:
            head: Any = dense[layer]
            head.weight = table.weight
    replace_layers(model, dense)
    fuse_experts(model)
    state_ties(model)
    return model


def _first_tensor(layer: CompressedLayer) -> int:
    # A tensor without elements is not shared.
    return id(next(tensor for tensor in chain(layer.parameters(), layer.buffers()) if tensor.numel()))
