"""Calibration in less memory: the activations within each block of a transformer are computed again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Recomputation", "without_cache"]

# Of transformers, by its name, since importing transformers to ask would cost seconds: a block that is made to be
# computed again.
_BLOCK = "GradientCheckpointingLayer"


class Recomputation:
    """Whether a block is being computed for the second time, when hooks must not count what they see."""

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
        """Let the blocks of a model of transformers keep only what they are given; other models stay as they are."""
        with ExitStack() as restored:
            for block in model.modules():
                if any(each.__name__ == _BLOCK for each in type(block).__mro__):
                    # On the instance, around the class's own; hooks of the block itself run once.
                    run: Callable[..., Any] = partial(
                        checkpoint, block.forward, use_reentrant=False, context_fn=self._contexts
                    )
                    object.__setattr__(block, "forward", run)
                    restored.callback(object.__delattr__, block, "forward")
            yield


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """No keys and values of a model of transformers are kept for a next token that never comes."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "use_cache"):
        yield
        return
    before, config.use_cache = config.use_cache, False
    try:
        yield
    finally:
        config.use_cache = before
