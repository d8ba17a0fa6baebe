"""Examples for models that do not predict the next token: images, sound, pairs of texts, with labels or without."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, ShapeError
from mpochain.surgery.masks import unmasked_positions
from mpochain.train.data import TrainingData, batch_list, tensors_of
from mpochain.train.losses import IGNORED

__all__ = ["Examples", "predicts_next_tokens"]

# Losses of transformers that shift the labels by one position.
_SHIFTED = ("ForCausalLM", "ForConditionalGeneration")


def predicts_next_tokens(model: nn.Module) -> bool:
    """Return True if a model is trained to predict the next token of a text, and False for other transformers models.

    A module that is no transformers model is taken for a language model.

    Example:
        >>> predicts_next_tokens(nn.Linear(3, 2))
        True
    """
    transformers_model: Any = model
    main = getattr(model, "main_input_name", None)
    if main is None:
        return True
    if main != "input_ids" or getattr(transformers_model.config, "is_encoder_decoder", False):
        return False
    kind = getattr(transformers_model, "loss_type", None)
    return bool(kind in _SHIFTED if kind is not None else transformers_model.can_generate())


@dataclass(frozen=True, eq=False)
class Examples(TrainingData):
    """Examples whose labels are not shifted; the model computes its own loss.

    Attributes:
        labels: ``(n, ...)`` as the model expects them; None if it only learns from a teacher.
    """

    @classmethod
    def of(cls, batches: Any, model: nn.Module) -> Examples:
        """Build examples from any of the forms that :func:`mpochain.finetune` accepts.

        Args:
            batches: tensors ``(n, ...)`` of the model's main input, or mappings of keyword arguments.
            model: transformers model that reads them.

        Raises:
            ArgumentError: there are no examples.
            ShapeError: arguments differ in number or shape between batches, or between one another in ``n``.
            DTypeError: the data have another type.

        Example:
            >>> class Sees(nn.Module):
            ...     main_input_name = "pixel_values"
            >>> examples = Examples.of([{"pixel_values": torch.zeros(2, 3, 4, 4), "labels": [1, 0]}], Sees())
            >>> len(examples), examples.targets, examples.labels
            (2, 2, tensor([1, 0]))
        """
        main = str(getattr(model, "main_input_name", "input_ids"))
        items = batch_list(batches)
        parts = [
            tensors_of(item if isinstance(item, Mapping) else {main: item}, position)
            for position, item in enumerate(items)
        ]
        for position, part in enumerate(parts):
            if part.keys() != parts[0].keys():
                raise ShapeError(
                    f"batch {position} has the arguments {sorted(part)}, but batch 0 has {sorted(parts[0])}; give all "
                    "batches the same arguments"
                )
            counts = {name: value.shape[0] if value.ndim else None for name, value in part.items()}
            if len(set(counts.values())) != 1 or None in counts.values():
                raise ShapeError(
                    f"batch {position}: the first axes of the arguments differ, {counts}; the first axis of every "
                    "argument counts the examples"
                )
        try:
            inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        except RuntimeError as error:
            raise ShapeError(f"the batches have arguments of different shapes ({error}); give equal shapes") from error
        if not inputs or not len(next(iter(inputs.values()))):
            raise ArgumentError(f"the batches hold no examples; give tensors {main} (n, ...)")
        labels = inputs.pop("labels", None)
        count = len(next(iter(inputs.values()))) if inputs else 0
        if not count:
            raise ArgumentError(f"the batches hold labels only; give the inputs of the model, such as {main}")
        return cls(inputs, labels, True, torch.arange(count, device="cpu"))

    @property
    def targets(self) -> int:
        """Number of labels that count, or of examples if labels are not integers."""
        if self.labels is None or self.labels.is_floating_point():
            return len(self)
        return max(int((self.labels != IGNORED).sum()), 1)

    def run(self, model: nn.Module, **options: bool) -> Any:
        """Call a model on these examples and return its output, with its loss if there are labels."""
        accepted = inspect.signature(model.forward).parameters
        # A wrapper, such as an adapter's, passes on what it is given.
        passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        if self.labels is not None and ("labels" in accepted or passes_on):
            return model(**self.inputs, labels=self.labels, **options)
        if "return_loss" in accepted:  # the contrast of images and texts, which needs no labels
            options["return_loss"] = True
        return model(**self.inputs, **options)

    def counted(self, shape: torch.Size) -> Tensor:
        """Return labels for predictions ``(*shape, classes)`` that count: 0, or -100 where there is nothing to predict.

        Positions without a label or behind a mask do not count.
        """
        masks = [self.inputs[name] for name in ("decoder_attention_mask", "attention_mask") if name in self.inputs]
        kept = [] if self.labels is None else [self.labels != IGNORED]
        for mask in (*kept, *map(unmasked_positions, masks)):
            if mask.shape == shape:
                return torch.zeros_like(mask, dtype=torch.long).masked_fill(~mask, IGNORED)
        device = next(iter(self.inputs.values())).device
        return torch.zeros(shape, dtype=torch.long, device=device)
