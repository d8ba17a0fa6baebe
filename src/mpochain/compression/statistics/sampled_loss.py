"""Losses to targets sampled from the model's predictions, whose gradients give the Fisher information."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpochain.errors import DTypeError, NonFiniteError
from mpochain.surgery.calls import logits_of

__all__ = ["SampledLoss", "sampled_classes", "sampled_labels", "sampled_values"]

_ROWS = 64  # rows sampled at a time; sampling takes two more arrays as large as the rows' probabilities

_NAN = "the model predicts NaN; check its weights and the data, or run it in float32"


class SampledLoss:
    """Summed cross-entropy to labels sampled from the model's predictions; its gradients give the Fisher information.

    True labels would give the empirical Fisher information, which vanishes where the model fits its data. Sampled
    labels need no labelled data. Source: K-FAC, arXiv 1503.05671, section 2.

    Args:
        seed: seed of the sampling.

    Example:
        >>> logits = torch.zeros(2, 3, 5)
        >>> round(SampledLoss(seed=0)(logits).item() / 6, 4)  # ln 5 for each of the six
        1.6094
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self, output: Any) -> Tensor:
        """Compute the loss of logits, or of an output that has ``.logits`` or logits as its first item.

        Raises:
            DTypeError: the output has no logits.
            NonFiniteError: the predicted probabilities are NaN or infinite.
        """
        try:
            logits = logits_of(output)
        except DTypeError as error:
            raise DTypeError(f"{error}; give loss=") from None
        return sampled_classes(logits, None, self._generator)


def sampled_classes(logits: Tensor, kept: Tensor | None, generator: torch.Generator) -> Tensor:
    """Summed cross-entropy of logits ``(..., classes)`` to labels drawn from their softmax.

    Args:
        logits: logits.
        kept: which rows count, bool, one entry per row; None for all.
        generator: source of the labels.

    Raises:
        NonFiniteError: a row that counts has NaN or infinite logits.
    """
    apply: Any = _Drawn.apply  # a Function has no types
    index = None if kept is None else kept.to(logits.device).nonzero().squeeze(1)
    value: Tensor = apply(logits.reshape(-1, logits.shape[-1]), index, generator)
    return value


def sampled_labels(logits: Tensor, kept: Tensor | None, generator: torch.Generator) -> Tensor:
    """Summed binary cross-entropy of logits ``(..., labels)``, each for a label of its own, to labels drawn from them.

    Args:
        logits: logits.
        kept: see :func:`sampled_classes`.
        generator: source of the labels.

    Raises:
        NonFiniteError: see :func:`sampled_classes`.
    """
    rows = _rows(logits, kept)
    drawn_by = _on(rows.device, generator)
    uniform = torch.rand(rows.shape, generator=drawn_by, dtype=rows.dtype, device=rows.device)
    labels = (uniform < rows.detach().sigmoid()).to(rows.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(rows, labels, reduction="sum")


def sampled_values(values: Tensor, kept: Tensor | None, scale: float, generator: torch.Generator) -> Tensor:
    """Half the summed squared error of values ``(..., features)`` to targets drawn around them, without its constant.

    The targets are normally distributed with the standard deviation ``scale``, and errors are relative to it. So the
    gradients give the Fisher information of a regression, the Gauss-Newton matrix.

    Args:
        values: outputs of the model.
        kept: see :func:`sampled_classes`.
        scale: standard deviation of the targets.
        generator: source of the targets.

    Raises:
        NonFiniteError: a row that counts has NaN or infinite values.
    """
    rows = _rows(values, kept)
    noise = torch.randn(rows.shape, generator=_on(rows.device, generator), dtype=rows.dtype, device=rows.device)
    return (rows * noise).sum() / scale


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator for numbers on a device: the CPU's itself, elsewhere a new one that it seeds.

    Numbers drawn on the CPU would have to be copied, and for labels all logits to the CPU first.
    """
    if device == generator.device:
        return generator
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def _rows(values: Tensor, kept: Tensor | None) -> Tensor:
    rows = values.reshape(-1, values.shape[-1])
    rows = (rows if kept is None else rows[kept.to(rows.device)]).float()
    if not rows.isfinite().all():
        raise NonFiniteError(_NAN)
    return rows


class _Drawn(torch.autograd.Function):
    """Cross-entropy to sampled labels that keeps one array as large as the logits, where autograd would keep four."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor | None, generator: torch.Generator) -> Tensor:
        gradient = torch.empty_like(logits, dtype=torch.float32)
        total = gradient.new_zeros(())
        if index is None:
            for rows, part in zip(logits.split(_ROWS), gradient.split(_ROWS), strict=True):
                total += _draw(rows, part, generator)
        else:
            gradient.zero_()
            for positions in index.split(_ROWS):
                part = gradient.new_empty(len(positions), logits.shape[1])
                total += _draw(logits.index_select(0, positions), part, generator)
                gradient.index_copy_(0, positions, part)
        ctx.gradient, ctx.dtype = gradient, logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad).to(ctx.dtype), None, None


def _draw(logits: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a label for each row, write the gradient of the cross-entropy, and return the cross-entropy."""
    torch.softmax(logits.float(), -1, out=gradient)
    if not gradient.isfinite().all():
        raise NonFiniteError(_NAN)
    drawn = torch.multinomial(gradient, 1, generator=_on(gradient.device, generator))
    chosen = gradient.gather(1, drawn)
    # Gradient of cross-entropy with respect to the logits: the probabilities, minus 1 at the label.
    gradient.scatter_add_(1, drawn, torch.full_like(chosen, -1.0))
    return -chosen.log().sum()
