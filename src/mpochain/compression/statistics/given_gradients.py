"""Gradients that are known, in place of a loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["GivenGradients"]


class GivenGradients:
    """Starts the backward pass of a part of a model from the gradients with respect to its output.

    Args:
        gradients: gives those of the present batch, of the shape of the output; None where no loss depends on it.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> GivenGradients(lambda: torch.tensor([1.0, 3.0])).backward(2 * x)
        >>> x.grad
        tensor([2., 6.])
    """

    def __init__(self, gradients: Callable[[], Tensor | None]) -> None:
        self._gradients = gradients

    def backward(self, states: Tensor) -> None:
        """Take the gradients of what the states were computed from."""
        gradients = self._gradients()
        if gradients is not None and states.requires_grad:
            states.backward(gradients.to(states.device))
