"""Compressed layers of a model, by name."""

from __future__ import annotations

from torch import nn

from mpochain.nn import CompressedLayer

__all__ = ["compressed_layers"]


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """All compressed layers of a model by name, without layers that are part of another compressed layer.

    Example:
        >>> from mpochain.nn import InterpolativeLinear, MPOLinear, SumLinear
        >>> parts = InterpolativeLinear(4, 3, 2), MPOLinear(4, 3, max_bond=1, bias=False)
        >>> list(compressed_layers(nn.Sequential(SumLinear(parts), nn.ReLU(), nn.Linear(3, 2))))
        ['0']
    """
    layers: dict[str, CompressedLayer] = {}
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer) and module not in inner:
            layers[name] = module
            inner.update(module.modules())
    return layers
