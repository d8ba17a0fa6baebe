"""Losses of models that do not predict the next token: their own loss, and the distance to a teacher's predictions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, ShapeError
from mpochain.train.examples import Examples
from mpochain.train.losses import IGNORED, distillation_loss, hidden_loss

__all__ = ["prediction_loss", "require_equal_predictions", "require_labels"]


def prediction_loss(
    predictions: Mapping[str, Tensor], teacher: Mapping[str, Tensor], examples: Examples, *, temperature: float = 1.0
) -> Tensor:
    """Distance between the predictions of a model and those of its teacher, the mean over the kinds of prediction.

    Classes by the divergence of :func:`mpochain.train.losses.distillation_loss`, over axis 1 for images of classes
    ``(n, classes, height, width)`` and over the last axis otherwise. Numbers that are no classes (a single logit,
    boxes, depths, embeddings) by their relative squared error.

    Args:
        predictions: of the model, see :func:`mpochain.surgery.calls.predictions_of`.
        teacher: of the teacher, with the same names and shapes.
        examples: what they were predicted of; masked positions do not count.
        temperature: of both softmaxes.

    Returns:
        A scalar.
    """
    losses = []
    for name, values in predictions.items():
        target = teacher[name]
        if "logits" in name and values.ndim == 4:
            values, target = values.movedim(1, -1), target.movedim(1, -1)
        if "logits" in name and values.ndim >= 2 and values.shape[-1] > 1:
            counted = examples.counted(values.shape[:-1])
            losses.append(distillation_loss(values, counted, target, weight=1.0, temperature=temperature))
        else:
            if values.ndim > 2:
                kept = examples.counted(values.shape[:-1]) != IGNORED
                values, target = values[kept], target[kept]
            one = torch.zeros(1, dtype=torch.long, device=values.device)
            losses.append(hidden_loss(values.reshape(1, -1), target.reshape(1, -1), one))
    return torch.stack(losses).mean()


def require_equal_predictions(predictions: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    """Check that model and teacher predict the same things.

    Raises:
        ShapeError: names or shapes differ.
    """
    shapes, expected = (
        {name: tuple(value.shape) for name, value in values.items()} for values in (predictions, teacher)
    )
    if shapes != expected:
        raise ShapeError(
            f"the teacher predicts {expected} and the model {shapes}; use the uncompressed model as the teacher"
        )


def require_labels(name: str, loss: Tensor | None, examples: Examples, predictions: Mapping[str, Tensor]) -> None:
    """Check that a model computes a loss, and that integer labels are classes that it knows.

    Args:
        name: name of the model's class.
        loss: the loss that the model computed.
        examples: all examples of the run.
        predictions: of one of them.

    Raises:
        ArgumentError: there is no loss, or a label is no class of the model.
    """
    if loss is None:
        raise ArgumentError(
            f"{name} computed no loss, without which it can only learn from a teacher; give batches with the labels "
            "that it expects, or a teacher= and distillation=1"
        )
    labels, logits = examples.labels, predictions.get("logits")
    classes = logits is not None and logits.ndim >= 2 and logits.shape[-1] > 1
    if labels is None or labels.is_floating_point() or logits is None or not classes:
        return
    size = logits.shape[1] if logits.ndim == 4 else logits.shape[-1]
    # 255 marks pixels without a class.
    outside = (labels >= size) & (labels != 255)
    if outside.any() and labels.shape[1:] == logits.shape[1:-1]:
        raise ArgumentError(f"the labels go up to {int(labels.max())}, but {name} has {size} classes, from 0")
