"""Configuration of training and finetuning, validated before any work."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mpochain.validation import Integer, Number, Validated

__all__ = ["FinetuneConfig", "TrainConfig", "learning_rate"]

Fraction = Annotated[Number, Field(ge=0.0, lt=1.0)]


class TrainConfig(Validated):
    """Training settings: AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        learning_rate: peak learning rate.
        betas: AdamW's decay rates.
        weight_decay: weight decay of every parameter. Each step removes the share ``learning_rate * weight_decay`` of
            a parameter, regardless of the factor of the parameter's own learning rate.
        warmup_steps: steps of linear warm-up.
        clip_norm: limit of the gradient norm over all parameters.
        seed: seed of the batches and of dropout.
        evaluate_every: steps between evaluations; 0 to evaluate only after the last step.
        checkpoint_every: steps between checkpoints.

    Raises:
        ArgumentError: a value is out of range or a name is unknown; the message lists every such field.

    Example:
        >>> TrainConfig(steps=10, warmup_steps=2).steps
        10
    """

    steps: Annotated[Integer, Field(ge=1)] = 2000
    batch_size: Annotated[Integer, Field(ge=1)] = 32
    learning_rate: Annotated[Number, Field(gt=0.0)] = 3e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[Number, Field(ge=0.0)] = 0.1
    warmup_steps: Annotated[Integer, Field(ge=0)] = 100
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    seed: Integer = 42
    evaluate_every: Annotated[Integer, Field(ge=0)] = 0
    checkpoint_every: Annotated[Integer, Field(ge=1)] = 100


class FinetuneConfig(TrainConfig):
    """Settings of :func:`mpochain.finetune`: training settings with defaults for trained weights, and loss weights.

    The loss of a batch is ``outputs * ((1 - w) CE + w T^2 KL) + hidden * H + attention * A``, where CE is the
    cross-entropy, KL the divergence from the teacher's predictions, H the error of hidden states and A the divergence
    from the teacher's attention.

    Attributes:
        warmup_steps: steps of linear warm-up; the default is capped at the number of steps.
        batch_size: windows per optimiser step; see ``accumulate``.
        accumulate: number of micro-batches that each batch is split into; must divide ``batch_size``. The loss stays
            the same, while activations and logits take less memory.
        distillation: ``w``, the weight of the divergence from the teacher, in ``[0, 1]``; None for 1 with a teacher and
            0 without one.
        temperature: ``T``, the temperature of both softmaxes in this divergence.
        outputs: weight of the loss on outputs; 0 to learn only from hidden states or attention, for example to restore
            an embedding before training the rest.
        hidden: weight of the error of hidden states; 0 for none.
        hidden_layers: names of the modules whose outputs are compared, the same in model and teacher.
        attention: weight of the divergence from the teacher's attention; 0 for none. Needs transformers models and
            switches them to "eager" attention, which is slower and takes more memory.
        autocast: dtype of the matrix products; parameters and losses stay float32. None for float32, or bfloat16 if the
            model is in bfloat16.
        gradient_checkpointing: recompute the activations of each block in the backward pass instead of storing them;
            for models with ``gradient_checkpointing_enable()``, such as transformers models.
        core_rates: scale the learning rates of cores by their fan-in, see
            :func:`mpochain.surgery.learning_rate_scales`.
        trainable: ``"all"``; ``"compressed"`` for the parameters of compressed layers and all vectors, such as biases
            and norm weights, while embeddings and dense layers stay frozen; ``"auxiliary"`` for all cores of a chain
            but its largest, and all vectors, which is light tuning (MPOP, arXiv 2106.02205); or names of parameters
            or modules, or ``re:`` patterns, to train only these.

    Raises:
        ArgumentError: a value is out of range, a name is unknown, or two values contradict each other; the message
            lists every such field.

    Example:
        >>> FinetuneConfig(steps=20, warmup_steps=5, batch_size=8, accumulate=4).temperature
        1.0
    """

    steps: Annotated[Integer, Field(ge=1)] = 100
    batch_size: Annotated[Integer, Field(ge=1)] = 4
    learning_rate: Annotated[Number, Field(gt=0.0)] = 2e-5
    weight_decay: Annotated[Number, Field(ge=0.0)] = 0.0
    warmup_steps: Annotated[Integer, Field(ge=0)] = 5
    checkpoint_every: Annotated[Integer, Field(ge=1)] = 20
    accumulate: Annotated[Integer, Field(ge=1)] = 1
    distillation: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    temperature: Annotated[Number, Field(gt=0.0)] = 1.0
    outputs: Annotated[Number, Field(ge=0.0)] = 1.0
    hidden: Annotated[Number, Field(ge=0.0)] = 0.0
    hidden_layers: tuple[str, ...] = ()
    attention: Annotated[Number, Field(ge=0.0)] = 0.0
    autocast: Literal["bfloat16"] | None = None
    gradient_checkpointing: bool = False
    core_rates: bool = False
    trainable: Literal["all", "compressed", "auxiliary"] | tuple[str, ...] = "all"

    @property
    def asks_teacher(self) -> bool:
        """Whether the loss uses a teacher, if one is given."""
        return (self.outputs > 0.0 and self.distillation != 0.0) or self.hidden > 0.0 or self.attention > 0.0

    @model_validator(mode="after")
    def _fit(self) -> Self:
        wrong = []
        if self.batch_size % self.accumulate:
            wrong.append(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}; choose a divisor")
        if "warmup_steps" not in self.model_fields_set:
            # Cap the default at the number of steps, but leave it unset, so that a copy with more steps can raise it.
            object.__setattr__(self, "warmup_steps", min(self.warmup_steps, self.steps))
        if self.warmup_steps > self.steps:
            wrong.append(
                f"warmup_steps={self.warmup_steps} exceeds steps={self.steps}, so the peak rate is never reached; "
                "lower it"
            )
        if (self.hidden > 0) != bool(self.hidden_layers):
            wrong.append(f"hidden={self.hidden} and hidden_layers={self.hidden_layers} go together; give both")
        if not (self.outputs or self.hidden or self.attention):
            wrong.append("outputs=0, hidden=0 and attention=0 leave nothing to learn from; give one of them")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of step ``step`` (0-based): linear warm-up to the peak, then cosine decay to zero.

    Example:
        >>> config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0)
        >>> [round(learning_rate(config, step), 3) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
