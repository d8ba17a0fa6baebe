"""The loss of finetuning, of a model that predicts the next token and of any other."""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.errors import ArgumentError
from mpochain.train.attention import attention_loss
from mpochain.train.config import FinetuneConfig
from mpochain.train.data import TrainingData
from mpochain.train.examples import Examples
from mpochain.train.losses import distillation_loss, hidden_loss
from mpochain.train.prediction_loss import prediction_loss
from mpochain.train.teacher import Outputs

__all__ = ["finetuning_loss"]


def finetuning_loss(outputs: Outputs, target: Outputs, data: TrainingData, config: FinetuneConfig) -> Tensor:
    """Compute the loss that :class:`mpochain.train.FinetuneConfig` describes.

    Args:
        outputs: of the model.
        target: of the teacher; empty without one.
        data: what they are outputs of.
        config: weights of the losses, with ``distillation`` set.

    Raises:
        ArgumentError: the model computes no loss, and the teacher is not all that it learns from.

    Returns:
        A scalar.
    """
    terms = [config.outputs * _of_outputs(outputs, target, data, config)] if config.outputs else []
    if target.hidden:
        errors = [
            hidden_loss(outputs.hidden[name], state, _labels(data, state)) for name, state in target.hidden.items()
        ]
        terms.append(config.hidden * torch.stack(errors).mean())
    if target.attentions:
        first = target.attentions[0]
        terms.append(
            config.attention * attention_loss(outputs.attentions, target.attentions, _labels(data, first[:, 0]))
        )
    return torch.stack(terms).sum()


def _of_outputs(outputs: Outputs, target: Outputs, data: TrainingData, config: FinetuneConfig) -> Tensor:
    """Cross-entropy or the model's own loss, and the divergence from the teacher's predictions."""
    weight = config.distillation or 0.0
    if not isinstance(data, Examples):
        assert outputs.logits is not None
        assert data.labels is not None
        return distillation_loss(
            outputs.logits, data.labels, target.logits, weight=weight, temperature=config.temperature
        )
    terms = []
    if weight < 1:
        if outputs.loss is None:
            raise ArgumentError("the model computed no loss; give labels, or a teacher= and distillation=1")
        terms.append((1 - weight) * outputs.loss)
    if weight > 0:
        distance = prediction_loss(outputs.predictions, target.predictions, data, temperature=config.temperature)
        terms.append(weight * distance)
    return torch.stack(terms).sum()


def _labels(data: TrainingData, states: Tensor) -> Tensor:
    """Labels for states ``(..., features)``, of which only -100 matters: positions that do not count."""
    if isinstance(data, Examples):
        return data.counted(states.shape[:-1])
    assert data.labels is not None
    return data.labels
