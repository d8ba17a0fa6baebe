"""Features in another order."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reordered"]


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """``y[..., j] = x[..., order[j]]``: ``(..., n)`` to ``(..., n)``.

    Args:
        x: any element type.
        order: ``(n,)`` integers.

    Example:
        >>> reordered(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([2, 0, 1]))
        tensor([[7., 5., 6.]])
    """
    if torch.is_grad_enabled() and x.requires_grad:
        # The same, but its gradient is a tenth of the time that index_select's takes (docs/decisions.md).
        return x.gather(-1, order.long().expand(x.shape))
    return x.index_select(-1, order)
