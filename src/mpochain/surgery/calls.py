"""Forward calls of Hugging Face models: key-value cache off, logits of the output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mpochain.architectures import family_of, logits_names, text_configs
from mpochain.errors import DTypeError

__all__ = ["logits_of", "without_cache"]


@contextmanager
def without_cache(*models: nn.Module) -> Iterator[None]:
    """Switch off the key-value cache, which only text generation needs, and restore the setting on exit.

    Args:
        models: Hugging Face models; other models have no such setting and are not changed.

    Example:
        >>> from types import SimpleNamespace
        >>> model = nn.Linear(3, 2)
        >>> model.config = SimpleNamespace(use_cache=True)
        >>> with without_cache(model):
        ...     print(model.config.use_cache)
        False
        >>> model.config.use_cache
        True
    """
    switches = [
        (config, family_of(model).cache, getattr(config, family_of(model).cache))
        for model in models
        for config in text_configs(model)
        if hasattr(config, family_of(model).cache)
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
