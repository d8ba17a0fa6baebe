"""The element type that autocast would give a matrix product."""

from __future__ import annotations

import torch

__all__ = ["autocast_dtype"]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's type for products on a device; None where it is off, or where there is none, as on ``meta``."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None
