"""Activation checkpointing of transformer blocks during calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from mpochain.architectures import family_of, is_block

__all__ = ["Recomputation"]


class Recomputation:
    """Activation checkpointing that tells hooks when a block is being recomputed.

    Attributes:
        active: whether a block is being recomputed, so that hooks must not count its inputs again.
    """

    def __init__(self) -> None:
        self.active = False

    @contextmanager
    def _second(self) -> Iterator[None]:
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self._second()

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Checkpoint the blocks of a transformers model, so that they keep only their inputs; no effect on others."""
        family = family_of(model)
        with ExitStack() as restored:
            for block in model.modules():
                if is_block(block, family):
                    # Set on the instance, around the class's forward, so that hooks of the block itself run once.
                    run: Callable[..., Any] = partial(
                        checkpoint, block.forward, use_reentrant=False, context_fn=self._contexts
                    )
                    object.__setattr__(block, "forward", run)
                    restored.callback(object.__delattr__, block, "forward")
            yield
