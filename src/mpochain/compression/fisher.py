"""The loss whose gradients tell what an output is worth: the model's own uncertainty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mpochain.errors import DTypeError

__all__ = ["SampledLoss"]


class SampledLoss:
    """Cross-entropy, summed, to labels that the model itself draws: gradients have the Fisher information as moments.

    With true labels the moments are those of the empirical Fisher information, which vanish where the model fits its
    data; drawn ones need no labels at all. Source: K-FAC, arXiv 1503.05671, section 2.

    Args:
        seed: of the draws.

    Example:
        >>> logits = torch.zeros(2, 3, 5)
        >>> round(SampledLoss(seed=0)(logits).item() / 6, 4)  # ln 5 for each of the six
        1.6094
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, output: Any) -> Tensor:
        """The loss of a model's output: logits, or what holds them as ``.logits`` or as its first item.

        Raises:
            DTypeError: no logits in it.
        """
        logits = getattr(output, "logits", output)
        logits = logits[0] if isinstance(logits, tuple | list) else logits
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
            raise DTypeError(
                f"expected logits (..., classes), or an output with .logits, got {type(output).__name__}; give loss="
            )
        flat = logits.reshape(-1, logits.shape[-1]).float()
        with torch.no_grad():
            drawn = torch.multinomial(flat.softmax(-1).cpu(), 1, generator=self._generator).squeeze(1).to(flat.device)
        return F.cross_entropy(flat, drawn, reduction="sum")
