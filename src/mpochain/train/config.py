"""What a training run is made of, validated before any work."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["TrainConfig", "learning_rate"]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainConfig(BaseModel):
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        learning_rate: peak learning rate.
        betas: AdamW's decay rates.
        weight_decay: on every parameter.
        warmup_steps: steps of linear warm-up.
        clip_norm: largest norm of the whole gradient.
        seed: of the batches.
        evaluate_every: steps between evaluations; 0 for none but the last.
        checkpoint_every: steps between checkpoints.

    Raises:
        pydantic.ValidationError: a value out of range or an unknown name (also a ValueError).

    Example:
        >>> TrainConfig(steps=10, warmup_steps=2).steps
        10
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(ge=1)] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    seed: int = 42
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Annotated[int, Field(ge=1)] = 100


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step ``step`` (0-based): linear to the peak, then half a cosine to zero.

    Example:
        >>> config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0)
        >>> [round(learning_rate(config, step), 3) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
