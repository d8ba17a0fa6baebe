"""Autocast for custom operators: the dtype of matrix products under autocast, and contexts without autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["autocast_dtype", "without_autocast"]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives products of ``x``; None if it is off, or for float64, which it does not cast."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products of ``x`` are computed in the dtype of ``x``."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
