"""Training PicoGPT on a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.nn import learning_rate_scales
from mpochain.picogpt.corpus import Corpus
from mpochain.picogpt.evaluation import evaluate
from mpochain.picogpt.model import PicoGPT
from mpochain.train import TrainConfig, TrainResult, train

__all__ = ["LEARNING_RATE", "train_picogpt"]

# Of runs from a random start: of 3, 6 and 10 thousandths the best for the dense model (docs/study.md). Cores learn at
# rates by their fan-in, relative to it.
LEARNING_RATE = 6e-3


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def train_picogpt(
    model: PicoGPT,
    corpus: Corpus,
    config: TrainConfig,
    *,
    core_rates: bool = False,
    start: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    label: str = "PicoGPT",
) -> TrainResult:
    """Train on random windows of the training split, evaluating on the full validation split.

    Args:
        model: trained in place.
        corpus: the text.
        config: see :class:`mpochain.train.TrainConfig`.
        core_rates: whether cores learn at rates by their fan-in, see :func:`mpochain.nn.learning_rate_scales`.
        start: where the weights came from (JSON); a checkpoint of a run that started elsewhere is refused.
        checkpoint: file to keep the state in.
        label: shown with the progress.

    Raises:
        CorpusError: a split is too short for one window, or the model has another vocabulary.
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
    return train(
        model,
        sample,
        _loss,
        config,
        scales=learning_rate_scales(model) if core_rates else None,
        evaluate=metrics,
        checkpoint=checkpoint,
        identity=identity,
        label=label,
    )
