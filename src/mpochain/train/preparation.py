"""Temporary modes, frozen parameters and gradient checkpointing of model and teacher during a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mpochain.errors import ArgumentError
from mpochain.surgery.calls import without_cache
from mpochain.train.attention import attention_maps
from mpochain.train.config import FinetuneConfig
from mpochain.train.trainable import trainable_parameters

__all__ = ["prepared"]


@contextmanager
def prepared(model: nn.Module, teacher: nn.Module | None, config: FinetuneConfig) -> Iterator[None]:
    """Freeze untrained parameters, set the teacher to evaluation mode, and disable caches; restored afterwards.

    Raises:
        ArgumentError: the model does not support gradient checkpointing; or see
            :func:`mpochain.train.trainable.trainable_parameters`.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> with prepared(model, None, FinetuneConfig(trainable=["weight"])):
        ...     print(model.bias.requires_grad)
        False
        >>> model.bias.requires_grad
        True
    """
    with ExitStack() as stack:
        for network in (model, teacher):
            if network is not None:
                stack.callback(_set_modes, {module: module.training for module in network.modules()})
                stack.enter_context(without_cache(network))
        if teacher is not None:
            teacher.eval()
            if config.attention:
                stack.enter_context(attention_maps(model, teacher))
        trained = {id(parameter) for parameter in trainable_parameters(model, config).values()}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        if config.gradient_checkpointing:
            stack.callback(_checkpoint_blocks(model))
        yield


def _checkpoint_blocks(model: nn.Module) -> Callable[[], None]:
    """Enable gradient checkpointing, and return a function that disables it again."""
    # Since transformers 5.6 it is called activation checkpointing.
    for word in ("activation", "gradient"):
        enable: Any = getattr(model, f"{word}_checkpointing_enable", None)
        if enable is None:
            continue
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            return lambda: None  # it was already enabled
        # Reentrant checkpointing needs inputs that require gradients, which the outputs of a frozen embedding do not.
        enable(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
        disable: Callable[[], None] = getattr(model, f"{word}_checkpointing_disable")
        return disable
    raise ArgumentError(
        f"gradient_checkpointing=True, but {type(model).__name__} has no gradient_checkpointing_enable() method, "
        "unlike transformers models; accumulate= saves memory with every model"
    )


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
