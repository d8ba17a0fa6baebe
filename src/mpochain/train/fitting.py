"""Checks that a model, its teacher, the losses and the data fit together."""

from __future__ import annotations

from torch import nn

from mpochain.architectures import context_length
from mpochain.errors import ArgumentError, ShapeError
from mpochain.train.config import FinetuneConfig
from mpochain.train.data import TrainingData
from mpochain.train.trainable import require_trainable

__all__ = ["require_context", "require_fitting_models"]


def require_fitting_models(model: nn.Module, teacher: nn.Module | None, config: FinetuneConfig) -> None:
    """Check that there are parameters to train, and a teacher of its own exactly if a loss uses one.

    Args:
        model: the model to train.
        teacher: None for no teacher.
        config: with ``distillation`` set.

    Raises:
        ArgumentError: a loss needs a teacher and there is none, no loss uses the teacher, it shares parameters with the
            model, or there is nothing to train.
        DTypeError: a parameter has a type that cannot be trained.

    Example:
        >>> model, config = nn.Linear(3, 2), FinetuneConfig(distillation=1.0)
        >>> require_fitting_models(model, nn.Linear(3, 2), config)
        >>> require_fitting_models(model, model, config)
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: the teacher shares weight with the model and would change with it; use ...
    """
    trainable = require_trainable(model, config)
    if config.asks_teacher and teacher is None:
        raise ArgumentError(
            f"distillation={config.distillation}, hidden={config.hidden} and attention={config.attention} need a "
            "teacher=; give the dense model, or set them to 0"
        )
    if teacher is None:
        return
    if not config.asks_teacher:
        raise ArgumentError(
            "there is a teacher=, but distillation, hidden and attention are 0, so it would not be used; leave it out"
        )
    frozen = {id(parameter) for parameter in teacher.parameters()}
    shared = [name for name, parameter in trainable.items() if id(parameter) in frozen]
    if shared:
        raise ArgumentError(
            f"the teacher shares {shared[0]} with the model and would change with it; use copy.deepcopy(model), made "
            "before compression, as the teacher"
        )


def require_context(data: TrainingData, *models: nn.Module | None) -> None:
    """Check that windows of tokens are not longer than the context of any of the models.

    Raises:
        ShapeError: they are.
    """
    text = data.inputs.get("input_ids")
    for model in models:
        limit = None if model is None else context_length(model)
        if limit is not None and text is not None and text.ndim > 1 and text.shape[1] > limit:
            raise ShapeError(
                f"windows of {text.shape[1]} tokens exceed the context of {type(model).__name__}, {limit} tokens; "
                "give shorter windows"
            )
