"""Which parameters of a model are trained."""

from __future__ import annotations

import re
from difflib import get_close_matches

import torch
from torch import nn

from mpochain.errors import DTypeError, SpecError
from mpochain.surgery.finding import compressed_layers
from mpochain.train.config import FinetuneConfig

__all__ = ["require_trainable", "trainable_parameters"]


def trainable_parameters(model: nn.Module, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """What is trained, by name: nothing that the user has frozen.

    Raises:
        SpecError: ``trainable`` names nothing of the model, or the compressed layers of one that has none.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False).requires_grad_(False))
        >>> list(trainable_parameters(model, FinetuneConfig(trainable="all")))
        ['0.weight', '0.bias']
    """
    chosen = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if config.trainable == "compressed":
        layers = list(compressed_layers(model).values())
        held = {id(parameter) for layer in layers for parameter in layer.parameters()}
        chosen = {name: each for name, each in chosen.items() if id(each) in held or each.ndim <= 1}
        if not layers:
            raise SpecError('trainable="compressed", but the model has no compressed layer; see mpochain.compress')
    elif config.trainable != "all":
        named = [_named(model, pattern) for pattern in config.trainable]
        chosen = {name: each for name, each in chosen.items() if any(id(each) in found for found in named)}
    return chosen


def _named(model: nn.Module, pattern: str) -> set[int]:
    """The parameters that are named, or are within a module that is."""
    names = [*dict(model.named_modules()), *(name for name, _ in model.named_parameters(remove_duplicate=False))]
    names = [name for name in names if name]
    try:
        matches = re.compile(pattern.removeprefix("re:")).fullmatch if pattern.startswith("re:") else pattern.__eq__
    except re.error as error:
        raise SpecError(f"trainable: {pattern!r} is no regular expression: {error}") from error
    found = [name for name in names if matches(name)]
    if not found:
        near = ", ".join(get_close_matches(pattern.removeprefix("re:"), names, cutoff=0.3)) or "none"
        raise SpecError(f"trainable: {pattern!r} names no module or parameter; most like it: {near}")
    return {
        id(each)
        for key, each in model.named_parameters(remove_duplicate=False)
        if any(key == name or key.startswith(f"{name}.") for name in found)
    }


def require_trainable(model: nn.Module, config: FinetuneConfig) -> dict[str, nn.Parameter]:
    """What :func:`trainable_parameters` says, refused where nothing would come of it.

    Raises:
        SpecError: nothing to train, or see :func:`trainable_parameters`.
        DTypeError: parameters too narrow to be trained.

    Example:
        >>> len(require_trainable(nn.Linear(3, 2), FinetuneConfig(trainable=["weight"])))
        1
    """
    trainable = trainable_parameters(model, config)
    if not trainable:
        raise SpecError(f"no parameter is left to train with trainable={config.trainable!r}; see requires_grad")
    narrow = [name for name, each in trainable.items() if each.dtype not in (torch.float32, torch.float64)]
    if narrow:
        raise DTypeError(
            f"{narrow[0]} is {trainable[narrow[0]].dtype}, where small steps round to nothing; train model.float(), "
            'with autocast="bfloat16" for the speed'
        )
    return trainable
