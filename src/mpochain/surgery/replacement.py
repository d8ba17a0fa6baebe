"""Replacement of layers in a model, under all their names, and of the values of parameters for a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from mpochain.nn import CompressedLayer
from mpochain.nn.attachments import has_movable_hook, require_nothing_attached
from mpochain.surgery.wrappers import notice_replacement, require_replaceable_in

__all__ = ["replace_layers", "with_layers", "with_values"]


def replace_layers(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Replace layers of a model, under every name by which it holds them.

    A compressed layer remembers which layer it replaced, so that ``to_dense`` returns the same type.

    Args:
        model: changed in place, or not at all if a layer is refused.
        layers: maps each old layer to its replacement.

    Raises:
        ArgumentError: a layer has hooks or the like, which would be lost, or a wrapper around it would go on with the
            old layer.

    Example:
        >>> shared = nn.Linear(2, 2)
        >>> model = nn.Sequential(shared, shared)
        >>> replace_layers(model, {shared: nn.ReLU()})
        >>> model[0] is model[1], model[1]
        (True, ReLU())
    """
    places = [
        (parent, key, child, f"{name}.{key}" if name else key)
        for name, parent in model.named_modules()
        # named_children() would skip the second name of a module.
        for key, child in parent._modules.items()
        if child is not None and child in layers
    ]
    require_replaceable_in(model, layers)
    for _, _, old, name in places:
        require_nothing_attached(old, name)
    for parent, key, old, _ in places:
        new = layers[old]
        setattr(parent, key, new.replacing(old) if isinstance(new, CompressedLayer) else new)
        notice_replacement(parent)
        if new is not old and has_movable_hook(old) and not has_movable_hook(new):
            _move_hook(old, new)


@contextmanager
def with_layers(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Context in which other layers stand for some of a model's.

    Args:
        model: changed in place until the context ends.
        layers: maps each layer of the model to the one that stands for it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> with with_layers(model, {model[0]: nn.ReLU()}):
        ...     print(model[0])
        ReLU()
        >>> model[0]
        Linear(in_features=2, out_features=2, bias=True)
    """
    replace_layers(model, layers)
    try:
        yield
    finally:
        replace_layers(model, {new: old for old, new in layers.items()})


@contextmanager
def with_values(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Context in which parameters hold other values.

    Args:
        values: tensors of the shape and dtype of their parameters.

    Example:
        >>> import torch
        >>> layer = nn.LayerNorm(2)
        >>> with with_values({layer.weight: torch.zeros(2)}):
        ...     print(layer.weight.data)
        tensor([0., 0.])
        >>> layer.weight.data
        tensor([1., 1.])
    """
    own = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        yield
    finally:
        for parameter, value in own.items():
            parameter.data = value


def _move_hook(old: nn.Module, new: nn.Module) -> None:
    """Move a hook of accelerate, which places the inputs on the layer's device, from one layer to another."""
    from accelerate.hooks import add_hook_to_module

    add_hook_to_module(new, old._hf_hook)
