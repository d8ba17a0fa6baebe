"""Token windows for finetuning: input formats and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.surgery.masks import unmasked_positions
from mpochain.train.data import TrainingData, batch_list, tensors_of
from mpochain.train.losses import IGNORED, next_tokens

__all__ = ["Windows"]


@dataclass(frozen=True, eq=False)
class Windows(TrainingData):
    """Token windows of equal length, ``n`` of them; the target of each position is the next token.

    Attributes:
        inputs: arguments of the model, each ``(n, ...)``, including ``input_ids (n, length)``.
        labels: ``(n, length)``, int64, the target of each position; -100 for positions without a target.

    Example:
        >>> windows = Windows.of(torch.arange(12).view(4, 3))
        >>> seen = torch.cat([windows.batch(step, 2, seed=0).inputs["input_ids"][:, 0] for step in (0, 1)])
        >>> seen.sort().values
        tensor([0, 3, 6, 9])
    """

    labels: Tensor

    @classmethod
    def of(cls, batches: Any, *, empty: bool = False) -> Windows:
        """Build windows from any of the forms that :func:`mpochain.finetune` accepts.

        Args:
            batches: the windows.
            empty: whether a window may have nothing to predict.

        Raises:
            ArgumentError: there are no windows, or a window has nothing to predict.
            ShapeError: windows differ in length, or arguments do not match them.
            DTypeError: tokens are not integers, or the data have another type.

        Example:
            >>> windows = Windows.of([torch.tensor([3, 4, 5]), torch.tensor([[6, 7, 8], [9, 1, 2]])])
            >>> len(windows), windows.labels[0]
            (3, tensor([   4,    5, -100]))
        """
        items = batch_list(batches)
        parts = [_arguments(item, position) for position, item in enumerate(items)]
        named = isinstance(items[0], Mapping)
        length = parts[0]["input_ids"].shape[1]
        for position, part in enumerate(parts):
            if isinstance(items[position], Mapping) != named or part.keys() != parts[0].keys():
                raise ShapeError(
                    f"batch {position} has the arguments {sorted(part)}, but batch 0 has {sorted(parts[0])}; give all "
                    "batches the same arguments"
                )
            if part["input_ids"].shape[1] != length:
                raise ShapeError(
                    f"batch {position} has windows of {part['input_ids'].shape[1]} tokens, batch 0 of {length}; cut "
                    f"them to one length, or pad them and set their labels to {IGNORED}"
                )
        try:
            inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        except RuntimeError as error:
            raise ShapeError(f"the batches have arguments of different shapes ({error}); give equal shapes") from error
        ids = inputs["input_ids"]
        if ids.shape[1] < 2 or not len(ids):
            raise ArgumentError(
                f"windows of shape {tuple(ids.shape)} have no next token to predict; give windows of 2 tokens or more"
            )
        labels = inputs.pop("labels", None)
        padding = ~unmasked_positions(inputs["attention_mask"]) if "attention_mask" in inputs else None
        labels = (ids if labels is None else labels).long()
        if padding is not None:
            labels = labels.masked_fill(padding, IGNORED)
        labels = next_tokens(labels)
        if padding is not None:
            # Padding on the left predicts nothing either.
            labels = labels.masked_fill(padding, IGNORED)
        unlabelled = (labels == IGNORED).all(1).nonzero()
        if len(unlabelled) and not empty:
            raise ArgumentError(
                f"window {unlabelled[0].item()} has nothing to predict: all its labels are {IGNORED}; leave it out"
            )
        return cls(inputs, labels, named, torch.arange(len(labels), device="cpu"))

    @property
    def length(self) -> int:
        """Number of tokens of a window."""
        return self.labels.shape[1]

    @property
    def targets(self) -> int:
        """Number of positions with a label."""
        return int((self.labels != IGNORED).sum())

    def require_vocabulary(self, size: int) -> None:
        """Check that all tokens and labels are below ``size``.

        Raises:
            ArgumentError: a token or label is outside; the message names its window.
        """
        for kind, values in (("token", self.inputs["input_ids"]), ("label", self.labels)):
            outside = (values < 0) & (values != IGNORED) if kind == "label" else values < 0
            outside |= values >= size
            if outside.any():
                window, position = outside.nonzero()[0].tolist()
                raise ArgumentError(
                    f"window {window} has the {kind} {values[window, position].item()} at position {position}; the "
                    f"model's vocabulary is 0 to {size - 1}. Use the tokenizer of this model"
                )

    def run(self, model: nn.Module, **options: bool) -> Any:
        """Call a model on these windows and return its output."""
        return model(**self.inputs, **options) if self.named else model(self.inputs["input_ids"], **options)


def _arguments(item: Any, position: int) -> dict[str, Tensor]:
    """Return the arguments of one batch as tensors whose first axis counts windows."""
    values = dict(item) if isinstance(item, Mapping) else {"input_ids": item}
    if "input_ids" not in values:
        raise ArgumentError(
            f"batch {position} has no input_ids, only {sorted(values)}; name its tokens input_ids. Inputs that are no "
            "tokens need a model of transformers that is not wrapped in another module"
        )
    tensors = tensors_of(values, position)
    ids = tensors["input_ids"]
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DTypeError(f"batch {position}: tokens must be integers, got {ids.dtype}")
    if ids.ndim == 1:
        tensors = {name: value[None] for name, value in tensors.items()}
        ids = tensors["input_ids"]
    if ids.ndim != 2:
        raise ShapeError(f"batch {position} has tokens of shape {tuple(ids.shape)}; expected (length,) or (n, length)")
    for name, value in tensors.items():
        by_position = name == "labels" or (name == "attention_mask" and value.ndim <= ids.ndim)
        expected = ids.shape if by_position else ids.shape[:1]
        if value.shape[: len(expected)] != expected:
            raise ShapeError(
                f"batch {position}: {name} {tuple(value.shape)} does not match tokens {tuple(ids.shape)}; its first "
                f"axes must be {tuple(expected)}"
            )
    return tensors
