"""Activation checkpointing of transformer blocks during calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils.checkpoint import checkpoint

from mpochain.architectures import families_of, is_block

__all__ = ["InputsChangedError", "Recomputation"]


class InputsChangedError(Exception):
    """A block changed its inputs in place, so that it cannot be recomputed from them."""


class Recomputation:
    """Activation checkpointing that tells hooks when a block is being recomputed."""

    def __init__(self) -> None:
        self._depth = 0

    @property
    def active(self) -> bool:
        """Whether a block is being recomputed, so that hooks must not count its inputs again."""
        return self._depth > 0

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context in which inputs are not counted, as if a block were recomputed."""
        # A block within a block is recomputed while the outer one is.
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self.uncounted()

    def _run(self, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        # A second run would add its keys to the cache again.
        if any(_is_cache(argument) for argument in (*arguments, *named.values())):
            return forward(*arguments, **named)
        before = _versions(arguments, named)
        output = checkpoint(forward, *arguments, use_reentrant=False, context_fn=self._contexts, **named)
        if _versions(arguments, named) != before:
            raise InputsChangedError
        return output

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Checkpoint the blocks of transformers models, so that they keep only their inputs; no effect on others.

        Args:
            model: a transformers model, or a module that contains some.

        Raises:
            InputsChangedError: in a call of the model, if a block changes its inputs in place.
        """
        families = families_of(model)
        with ExitStack() as restored:
            for block in model.modules():
                if any(is_block(block, family) for family in families):
                    # Set on the instance, around its forward, so that hooks of the block itself run once.
                    patched = block.__dict__.get("forward")
                    object.__setattr__(block, "forward", partial(self._run, block.forward))
                    if patched is None:
                        restored.callback(object.__delattr__, block, "forward")
                    else:
                        restored.callback(object.__setattr__, block, "forward", patched)
            yield


def _is_cache(argument: Any) -> bool:
    """Whether an argument of a block is an object of transformers that collects keys, values or states."""
    return any(base.__name__.endswith("Cache") for base in type(argument).__mro__)


def _versions(*arguments: Any) -> list[int]:
    """How often each tensor was changed in place; inference tensors do not know."""
    tensors = [value for value in tree.tree_leaves(arguments) if isinstance(value, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]
