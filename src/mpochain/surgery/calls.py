"""Forward calls of Hugging Face models: key-value cache off, logits of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mpochain.architectures import all_configs, cache_names, logits_names
from mpochain.errors import DTypeError

__all__ = ["logits_of", "predictions_of", "without_cache"]


@contextmanager
def without_cache(*models: nn.Module) -> Iterator[None]:
    """Switch off the key-value caches, which only text generation needs, and restore the settings on exit.

    Args:
        models: Hugging Face models, or modules that contain some, with every configuration in them; see
            :func:`mpochain.architectures.all_configs`. Other modules have no such setting and are not changed.

    Example:
        >>> from types import SimpleNamespace
        >>> model = nn.Linear(3, 2)
        >>> model.config = SimpleNamespace(use_cache=True)
        >>> with without_cache(nn.Sequential(model)):
        ...     print(model.config.use_cache)
        False
        >>> model.config.use_cache
        True
    """
    # By identity: models may share a configuration, whose setting must be read before it is changed.
    configs = {id(config): config for model in models for config in all_configs(model)}
    switches = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in cache_names()
        if hasattr(config, name)
    ]
    try:
        for config, name, _ in switches:
            setattr(config, name, False)
        yield
    finally:
        for config, name, setting in switches:
            setattr(config, name, setting)


def logits_of(output: Any) -> Tensor:
    """Return the logits ``(..., V)`` of a model's output: the output, its ``.logits`` or its first item.

    Raises:
        DTypeError: the output has no logits.

    Example:
        >>> import torch
        >>> logits_of((torch.zeros(2, 3, 5), "more")).shape
        torch.Size([2, 3, 5])
    """
    name = next((name for name in logits_names() if hasattr(output, name)), None)
    logits = output if name is None else getattr(output, name)
    logits = logits[0] if isinstance(logits, tuple | list) and logits else logits
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
        raise DTypeError(f"expected logits (..., classes), or an output with .logits, got {type(output).__name__}")
    return logits


def predictions_of(output: Any) -> dict[str, Tensor]:
    """Return what a model of any kind predicts, by name: logits, boxes and the like, or else its first numbers.

    Raises:
        DTypeError: the output has no floating-point tensor.

    Example:
        >>> import torch
        >>> list(predictions_of({"loss": torch.ones(()), "logits": torch.zeros(2, 5), "hidden_states": ()}))
        ['logits']
        >>> list(predictions_of({"last_hidden_state": torch.zeros(2, 3, 5), "pooler_output": torch.zeros(2, 5)}))
        ['last_hidden_state']
    """
    if isinstance(output, Tensor):
        output = {"logits": output}
    elif not isinstance(output, Mapping):
        output = dict(enumerate(output)) if isinstance(output, tuple | list) else vars(output)
    values = {
        str(name): value
        for name, value in output.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
    }
    named = {name: value for name, value in values.items() if "logits" in name or name.startswith("pred")}
    if not values:
        raise DTypeError(f"expected an output with floating-point tensors, got {type(output).__name__}")
    first = next(iter(values))
    return named or {first: values[first]}
