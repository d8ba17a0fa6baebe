"""Compressed layers of a model, by name."""

from __future__ import annotations

from torch import nn

from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer

__all__ = ["compressed_layers", "parts_of_layers", "require_module"]


def require_module(model: object, argument: str = "model") -> None:
    """Refuse what is no module.

    Raises:
        ArgumentError: naming the argument and what it is.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{argument} must be a torch.nn.Module, got {type(model).__name__}")


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """All compressed layers of a model by name, without layers that are part of another compressed layer.

    Example:
        >>> from mpochain.nn import InterpolativeLinear, MPOLinear, SumLinear
        >>> parts = InterpolativeLinear(4, 3, 2), MPOLinear(4, 3, max_bond=1, bias=False)
        >>> list(compressed_layers(nn.Sequential(SumLinear(parts), nn.ReLU(), nn.Linear(3, 2))))
        ['0']
    """
    require_module(model)
    layers: dict[str, CompressedLayer] = {}
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer) and module not in inner:
            layers[name] = module
            inner.update(module.modules())
    return layers


def parts_of_layers(model: nn.Module) -> set[nn.Module]:
    """All modules inside of compressed layers, such as the factors of one of low rank.

    Example:
        >>> from mpochain.nn import InterpolativeLinear
        >>> model = nn.Sequential(InterpolativeLinear(4, 3, 2), nn.Linear(3, 2))
        >>> {type(part).__name__ for part in parts_of_layers(model)}, model[1] in parts_of_layers(model)
        ({'Linear'}, False)
    """
    return {part for layer in compressed_layers(model).values() for part in layer.modules() if part is not layer}
