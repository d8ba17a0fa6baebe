"""What a training run is made of, validated before any work."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FinetuneConfig", "TrainConfig", "learning_rate"]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainConfig(BaseModel):
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        learning_rate: peak learning rate.
        betas: AdamW's decay rates.
        weight_decay: on every parameter; times the learning rate, before any factor of its own, it is the share that a
            parameter loses at a step.
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


class FinetuneConfig(TrainConfig):
    """What healing adds to a training run; other defaults where weights start out trained.

    Attributes:
        warmup_steps: at most as many as the run has, if not given.
        batch_size: windows per optimiser step, however they are split; see ``accumulate``.
        accumulate: parts that each batch is split into, one after the other; divides ``batch_size``. The mean over all
            tokens is the same, the memory that activations and logits take falls.
        distillation: share ``w`` of the divergence from the teacher in ``(1 - w) CE + w KL``, in ``[0, 1]``; None for
            1 with a teacher and 0 without one.
        temperature: ``T`` of both softmaxes of the divergence, which is multiplied by ``T^2``.
        outputs: weight of that loss; 0 to learn from hidden states or attention alone, which is how an embedding can be
            brought back before the rest learns.
        hidden: weight of the error of hidden states, added to the other losses; 0 for none.
        hidden_layers: modules whose outputs are compared, by the name that model and teacher have for them.
        attention: weight of the divergence of the model's attention from the teacher's, added to the other losses; 0
            for none. For models of transformers, which then compute attention in the plain way, slower and in more
            memory.
        autocast: element type of the matrix products; parameters and losses stay float32. None for the model's own.
        gradient_checkpointing: compute the activations of each block again in the backward pass in place of keeping
            them; for models with ``gradient_checkpointing_enable``, as those of transformers have.
        core_rates: whether cores learn at rates by their fan-in, see :func:`mpochain.surgery.learning_rate_scales`.
        trainable: ``"all"``; ``"compressed"``: the parameters of compressed layers, and vectors such as biases and
            the weights of norms, which are few, so that embeddings and layers that stayed dense stay as they are; or
            names of parameters or modules, and ``re:`` patterns of them, for these alone.

    Raises:
        pydantic.ValidationError: a value out of range, an unknown name, or values that do not fit each other (also a
            ValueError).

    Example:
        >>> FinetuneConfig(steps=20, warmup_steps=5, batch_size=8, accumulate=4).temperature
        1.0
    """

    steps: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    checkpoint_every: Annotated[int, Field(ge=1)] = 20
    accumulate: Annotated[int, Field(ge=1)] = 1
    distillation: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    outputs: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    hidden: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    hidden_layers: tuple[str, ...] = ()
    attention: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    autocast: Literal["bfloat16"] | None = None
    gradient_checkpointing: bool = False
    core_rates: bool = False
    trainable: Literal["all", "compressed"] | tuple[str, ...] = "all"

    @property
    def asks_teacher(self) -> bool:
        """Whether any of the losses compares with a teacher, if there is one."""
        return (self.outputs > 0.0 and self.distillation != 0.0) or self.hidden > 0.0 or self.attention > 0.0

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        if "warmup_steps" not in self.model_fields_set:
            # One that nobody asked for is no longer than the run; it stays unset, for a stage with more steps.
            object.__setattr__(self, "warmup_steps", min(self.warmup_steps, self.steps))
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is over steps={self.steps}; the peak is never reached")
        if (self.hidden > 0) != bool(self.hidden_layers):
            raise ValueError(f"hidden={self.hidden} and hidden_layers={self.hidden_layers} go together; give both")
        if not (self.outputs or self.hidden or self.attention):
            raise ValueError("outputs=0, hidden=0 and attention=0 leave nothing to learn from; give one of them")
        return self


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
