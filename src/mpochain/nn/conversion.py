"""Modules that cache what they compute of their tensors, and drop it when these are converted or moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from mpochain.execution.kept import Kept

__all__ = ["Caching"]


class Caching(nn.Module):
    """Module with a cache, or with several in a subclass, for calls without gradients.

    A conversion there and back, such as ``half().float()``, changes numbers, but may leave every parameter at its
    address, with its type and its version, so that the cache alone would not notice it.
    """

    _kept: Kept | None = None

    def _forget(self) -> None:
        """Drop what is cached."""
        if self._kept is not None:
            self._kept = Kept()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget()
        # torch gives this method no types.
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied
