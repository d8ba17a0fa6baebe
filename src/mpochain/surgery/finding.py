"""Compressed layers of a model by their names."""

from __future__ import annotations

from torch import nn

from mpochain.nn.compressed import Compressed

__all__ = ["compressed_layers"]


def compressed_layers(model: nn.Module) -> dict[str, Compressed]:
    """Every compressed layer of a model by its name; what is within another one is not listed.

    Example:
        >>> from mpochain.nn import InterpolativeLinear, MPOLinear, SumLinear
        >>> parts = InterpolativeLinear(4, 3, 2), MPOLinear(4, 3, max_bond=1, bias=False)
        >>> list(compressed_layers(nn.Sequential(SumLinear(parts), nn.ReLU(), nn.Linear(3, 2))))
        ['0']
    """
    found: dict[str, Compressed] = {}
    within: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, Compressed) and layer not in within:
            found[name] = layer
            within.update(layer.modules())
    return found
