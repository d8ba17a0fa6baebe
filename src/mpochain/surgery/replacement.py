"""Putting layers in the place of others, wherever a model holds them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["replace_layers"]


def replace_layers(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Put new layers in place of old ones, under every name that a model has for them.

    Args:
        model: changed in place.
        layers: the new layer of each old one.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> model = nn.Sequential(shared, shared)
        >>> replace_layers(model, {shared: nn.ReLU()})
        >>> model[0] is model[1], model[1]
        (True, ReLU())
    """
    for parent in list(model.modules()):
        # Not named_children(), which leaves out the second name of a module.
        for name, child in list(parent._modules.items()):
            if child is not None and child in layers:
                setattr(parent, name, layers[child])
