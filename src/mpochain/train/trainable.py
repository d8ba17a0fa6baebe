"""Selection of the trainable parameters of a model by configuration."""

from __future__ import annotations

import torch
from torch import nn

from mpochain.errors import ArgumentError, DTypeError
from mpochain.nn import CompressedLayer
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.half_precision import HALF_DTYPES
from mpochain.train.config import FinetuneConfig
from mpochain.train.patterns import matching

__all__ = ["require_trainable", "trainable_parameters"]


def trainable_parameters(model: nn.Module, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """Return the parameters to train by name; those with ``requires_grad=False`` are left out.

    Raises:
        ArgumentError: a name in ``trainable`` matches nothing, it is ``"compressed"`` and no layer is compressed, or it
            is ``"auxiliary"`` and no layer is a chain.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False).requires_grad_(False))
        >>> list(trainable_parameters(model, FinetuneConfig(trainable="all")))
        ['0.weight', '0.bias']
    """
    chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.trainable == "compressed":
        layers = list(compressed_layers(model).values())
        compressed = {id(parameter) for layer in layers for parameter in layer.parameters()}
        if not layers:
            raise ArgumentError(
                'trainable="compressed", but the model has no compressed layer; call mpochain.compress first'
            )
        chosen = {name: value for name, value in chosen.items() if id(value) in compressed or value.ndim <= 1}
    elif config.trainable == "auxiliary":
        auxiliary = _auxiliary_cores(model)
        chosen = {name: value for name, value in chosen.items() if id(value) in auxiliary or value.ndim <= 1}
    elif config.trainable != "all":
        named = [_named(model, pattern) for pattern in config.trainable]
        chosen = {name: value for name, value in chosen.items() if any(id(value) in group for group in named)}
    return chosen


def _auxiliary_cores(model: nn.Module) -> set[int]:
    """Ids of the cores of all chains beside the central ones."""
    cores: set[int] = set()
    central: set[int] = set()
    for layer in (module for module in model.modules() if isinstance(module, CompressedLayer)):
        names = layer.central_cores()
        if names:
            parameters = dict(layer.named_parameters(remove_duplicate=False))
            central |= {id(parameters[name]) for name in names}
            cores |= {id(value) for value in parameters.values()}
    if not cores:
        raise ArgumentError(
            'trainable="auxiliary" freezes the central core of every chain, and the model has no chain of two sites or '
            "more; compress it with a method that makes chains, such as tt_svd or search, or name what to train"
        )
    return cores - central


def _named(model: nn.Module, pattern: str) -> set[int]:
    """Return the ids of the parameters that match a pattern or are inside a module that matches it."""
    names = [*dict(model.named_modules()), *(name for name, _ in model.named_parameters(remove_duplicate=False))]
    matched = matching(names, pattern, "trainable", "module or parameter")
    return {
        id(parameter)
        for key, parameter in model.named_parameters(remove_duplicate=False)
        if any(key == name or key.startswith(f"{name}.") for name in matched)
    }


def require_trainable(model: nn.Module, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """Return :func:`trainable_parameters` after checking that there is at least one and that all can be trained.

    Raises:
        ArgumentError: there is no parameter to train; or see :func:`trainable_parameters`.
        DTypeError: parameters are not float32, float64, bfloat16 or float16.

    Example:
        >>> len(require_trainable(nn.Linear(3, 2), FinetuneConfig(trainable=["weight"])))
        1
    """
    trainable = trainable_parameters(model, config)
    if not trainable:
        raise ArgumentError(
            f"trainable={config.trainable!r} leaves no parameter to train; set requires_grad, or name other parameters"
        )
    for name, parameter in trainable.items():
        if parameter.is_inference():
            raise ArgumentError(
                f"{name} was created under torch.inference_mode() and can never be trained; build, load or compress "
                "the model outside"
            )
        if parameter.dtype not in (torch.float32, torch.float64, *HALF_DTYPES):
            raise DTypeError(
                f"{name} is {parameter.dtype}, which cannot be trained; expected float32, float64, bfloat16 or float16"
            )
    return trainable
