"""Models as they have to be for training, and afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mpochain.errors import SpecError
from mpochain.surgery.calls import without_cache
from mpochain.train.attention import attention_maps
from mpochain.train.config import FinetuneConfig
from mpochain.train.trainable import trainable_parameters

__all__ = ["prepared"]


@contextmanager
def prepared(model: nn.Module, teacher: nn.Module | None, config: FinetuneConfig) -> Iterator[None]:
    """Both models set for training: what is not trained is frozen, and the teacher in evaluation mode.

    Raises:
        SpecError: see :func:`mpochain.train.trainable.trainable_parameters`; or no gradient checkpointing to be had.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> with prepared(model, None, FinetuneConfig(trainable=["weight"])):
        ...     print(model.bias.requires_grad)
        False
        >>> model.bias.requires_grad
        True
    """
    with ExitStack() as stack:
        for each in (model, teacher):
            if each is not None:
                stack.callback(_set_modes, {module: module.training for module in each.modules()})
                stack.enter_context(without_cache(each))
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
    """Switch gradient checkpointing on, and say how it is switched off again."""
    # Transformers 5.6 calls activation checkpointing what was gradient checkpointing before.
    for word in ("activation", "gradient"):
        enable: Any = getattr(model, f"{word}_checkpointing_enable", None)
        if enable is None:
            continue
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            return lambda: None  # it was on before
        # The other kind needs inputs that require gradients, which a frozen embedding does not give.
        enable(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
        disable: Callable[[], None] = getattr(model, f"{word}_checkpointing_disable")
        return disable
    raise SpecError(
        f"gradient_checkpointing=True, but {type(model).__name__} has no gradient_checkpointing_enable(), as models of "
        "transformers have; accumulate= saves memory with every model"
    )


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
