"""Training of a PicoGPT on a corpus, with or without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError
from mpochain.surgery import learning_rate_scales
from mpochain.surgery.fingerprint import fingerprint
from mpochain.train import TrainConfig, TrainResult, train
from mpochain.train.losses import distillation_loss
from mpochain.validation import Validated
from studies.picogpt.corpus import Corpus
from studies.picogpt.evaluation import evaluate
from studies.picogpt.model import PicoGPT

__all__ = ["LEARNING_RATE", "Lessons", "train_picogpt"]

# Learning rate for random starts: the best of 3e-3, 6e-3 and 1e-2 for the dense model (docs/results/study.md). The
# rates of cores are scaled by their fan-in, relative to it.
LEARNING_RATE = 6e-3

_Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


class Lessons(Validated):
    """Weights of a teacher's predictions and of the text in the training loss.

    See :func:`mpochain.train.losses.distillation_loss`. Source: Hinton et al., arXiv 1503.02531, section 2.

    Attributes:
        weight: share of the divergence from the teacher in the loss; the rest is cross-entropy on the text.
        temperature: temperature of both softmaxes in the divergence.

    Raises:
        ArgumentError: a value is out of range or a name is unknown.

    Example:
        >>> Lessons(temperature=1.0).weight
        0.5
    """

    weight: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 2.0


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def _distilled(teacher: PicoGPT, lessons: Lessons) -> _Loss:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        with torch.no_grad():
            predictions = teacher(inputs)
        return distillation_loss(
            model(inputs), targets, predictions, weight=lessons.weight, temperature=lessons.temperature
        )

    return loss


def train_picogpt(
    model: PicoGPT,
    corpus: Corpus,
    config: TrainConfig,
    *,
    core_rates: bool = False,
    teacher: PicoGPT | None = None,
    lessons: Lessons | None = None,
    start: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    label: str = "PicoGPT",
) -> TrainResult:
    """Train a model on random windows of the training split; evaluate it on the full validation split.

    Args:
        model: trained in place.
        corpus: the text.
        config: see :class:`mpochain.train.TrainConfig`.
        core_rates: scale the learning rates of cores by fan-in, see :func:`mpochain.surgery.learning_rate_scales`.
        teacher: model whose predictions are learned in addition to the text; not changed.
        lessons: weight of the teacher's predictions; by default half of the loss, at temperature 2.
        start: origin of the weights (JSON); a checkpoint of a run with another origin is refused.
        checkpoint: file for the resumable state.
        label: name of the run in progress messages.

    Raises:
        CorpusError: a split is too short for one window, or the model or its teacher has another vocabulary.
        ArgumentError: ``lessons`` is given without a teacher.
        CheckpointError: see :func:`mpochain.train.train`.
    """
    corpus.require_context(model.context)
    corpus.require_vocabulary(model.vocab_size)
    tokens = corpus.train
    offsets = torch.arange(model.context + 1)

    def sample(generator: torch.Generator, _step: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(tokens.numel() - model.context, (config.batch_size, 1), generator=generator)
        windows = tokens[starts + offsets].long()
        return windows[:, :-1], windows[:, 1:]

    def metrics() -> dict[str, float]:
        result = evaluate(model, corpus.validation, context=model.context)
        return {"loss": result.loss, "accuracy": result.accuracy}

    identity = {"corpus": corpus.sha256, **model.design.as_dict(), "start": dict(start or {})}
    loss: _Loss = _loss
    if lessons is not None and teacher is None:
        raise ArgumentError("lessons= needs teacher=, the model to learn from")
    if teacher is not None:
        corpus.require_vocabulary(teacher.vocab_size)
        lessons = lessons or Lessons()
        loss = _distilled(teacher, lessons)
        identity |= {"teacher": fingerprint(teacher), **lessons.model_dump()}
    return train(
        model,
        sample,
        loss,
        config,
        scales=learning_rate_scales(model) if core_rates else None,
        evaluate=metrics,
        checkpoint=checkpoint,
        identity=identity,
        label=label,
    )
