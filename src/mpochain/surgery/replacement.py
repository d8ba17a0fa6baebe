"""Replacement of layers in a model, under all their names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["replace_layers"]


def replace_layers(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Replace layers of a model, under every name by which it holds them.

    Args:
        model: changed in place.
        layers: maps each old layer to its replacement.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> model = nn.Sequential(shared, shared)
        >>> replace_layers(model, {shared: nn.ReLU()})
        >>> model[0] is model[1], model[1]
        (True, ReLU())
    """
    for parent in list(model.modules()):
        # named_children() would skip the second name of a module.
        for name, child in list(parent._modules.items()):
            if child is not None and child in layers:
                setattr(parent, name, layers[child])
