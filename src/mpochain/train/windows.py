"""Windows of tokens, however they were given, and the order in which they are seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import DTypeError, ShapeError, SpecError
from mpochain.train.distillation import IGNORED, next_tokens

__all__ = ["Windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """``n`` windows of one length.

    Attributes:
        inputs: the model's arguments, each ``(n, ...)``; ``input_ids (n, length)`` is one of them.
        labels: ``(n, length)``, the label of each position, -100 for none.
        named: whether the model is called with named arguments, or with ``input_ids`` alone.
        places: ``(n,)``, which of all windows these are.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    named: bool
    places: Tensor

    @classmethod
    def of(cls, batches: Any) -> Windows:
        """Windows of what :func:`mpochain.finetune` takes.

        Raises:
            SpecError: no windows, or one that has nothing to predict.
            ShapeError: windows of different lengths, or arguments that do not fit them.
            DTypeError: tokens that are not integers, or another kind of data.

        Example:
            >>> windows = Windows.of([torch.tensor([3, 4, 5]), torch.tensor([[6, 7, 8], [9, 1, 2]])])
            >>> len(windows), windows.labels[0]
            (3, tensor([   4,    5, -100]))
        """
        items: Sequence[Any] = [batches] if isinstance(batches, Tensor | Mapping) else batches
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            raise DTypeError(
                f"batches are a tensor of windows, a list of tensors, or mappings of named ones, got "
                f"{type(batches).__name__}; windows are drawn from all of them, so put them into a list"
            )
        if not len(items):
            raise SpecError("there are no batches; give windows of tokens, (n, length)")
        parts = [_arguments(item, place) for place, item in enumerate(items)]
        named = isinstance(items[0], Mapping)
        for place, part in enumerate(parts):
            first = parts[0]["input_ids"].shape[1]
            if isinstance(items[place], Mapping) != named or part.keys() != parts[0].keys():
                raise ShapeError(f"batch {place} has the arguments {sorted(part)}, the first one {sorted(parts[0])}")
            if part["input_ids"].shape[1] != first:
                raise ShapeError(
                    f"batch {place} has windows of {part['input_ids'].shape[1]} tokens, the first one of {first}; cut "
                    "them to one length, or pad them and set their labels to -100"
                )
        try:
            inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        except RuntimeError as error:
            raise ShapeError(f"the batches have arguments of different shapes: {error}") from error
        ids = inputs["input_ids"]
        if ids.shape[1] < 2 or not len(ids):
            raise SpecError(f"windows of shape {tuple(ids.shape)} have no next token to predict; give 2 tokens or more")
        labels = inputs.pop("labels", None)
        if labels is None:
            labels = ids
            if "attention_mask" in inputs:
                labels = ids.masked_fill(inputs["attention_mask"] == 0, IGNORED)
        labels = next_tokens(labels.long())
        empty = (labels == IGNORED).all(1).nonzero()
        if len(empty):
            raise SpecError(f"window {empty[0].item()} has nothing to predict: all of its labels are {IGNORED}")
        return cls(inputs, labels, named, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.labels.shape[1]

    @property
    def targets(self) -> int:
        """Positions with a label."""
        return int((self.labels != IGNORED).sum())

    def require_vocabulary(self, size: int) -> None:
        """Check that all tokens and labels are of a vocabulary of this size.

        Raises:
            SpecError: one that is not, naming its window.
        """
        for what, values in (("token", self.inputs["input_ids"]), ("label", self.labels)):
            bad = (values < 0) & (values != IGNORED) if what == "label" else values < 0
            bad |= values >= size
            if bad.any():
                window, place = bad.nonzero()[0].tolist()
                raise SpecError(
                    f"window {window} has the {what} {values[window, place].item()} at position {place}; the model's "
                    f"vocabulary is 0 to {size - 1}. Was the text cut by the tokenizer of another model?"
                )

    def sha256(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256(str(self.named).encode())
        for name, value in [*sorted(self.inputs.items()), ("labels", self.labels)]:
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def select(self, places: Tensor) -> Windows:
        """Those at these places, ``(k,)``."""
        inputs = {name: value[places] for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels[places], places=self.places[places])

    def to(self, device: torch.device) -> Windows:
        """On another device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels.to(device))

    def batch(self, step: int, size: int, seed: int) -> Windows:
        """The batch of a step: each epoch goes through all windows, in an order drawn from the seed and its number.

        It depends on nothing else, so a resumed run sees what the whole one does.

        Example:
            >>> windows = Windows.of(torch.arange(12).view(4, 3))
            >>> seen = torch.cat([windows.batch(step, 2, seed=0).inputs["input_ids"][:, 0] for step in (0, 1)])
            >>> seen.sort().values
            tensor([0, 3, 6, 9])
        """
        places: list[Tensor] = []
        for k in range(step * size, (step + 1) * size):
            epoch, place = divmod(k, len(self))
            if not places or not place:
                generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
                order = torch.randperm(len(self), generator=generator)
            places.append(order[place])
        return self.select(torch.stack(places))

    def split(self, count: int) -> Iterator[tuple[Windows, float]]:
        """``count`` equal parts, each with its share of the labels."""
        for places in torch.arange(len(self)).chunk(count):
            part = self.select(places)
            yield part, part.targets / self.targets

    def run(self, model: nn.Module, **options: bool) -> Any:
        """The model's output."""
        return model(**self.inputs, **options) if self.named else model(self.inputs["input_ids"], **options)


def _arguments(item: Any, place: int) -> dict[str, Tensor]:
    """One batch as tensors whose first axis is that of windows."""
    given = dict(item) if isinstance(item, Mapping) else {"input_ids": item}
    if "input_ids" not in given:
        raise SpecError(f"batch {place} has no input_ids, only {sorted(given)}; windows of tokens go by that name")
    found = {}
    for name, value in given.items():
        try:
            found[name] = value if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DTypeError(f"batch {place}: {name} is no tensor but {type(value).__name__}: {error}") from error
    ids = found["input_ids"]
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DTypeError(f"batch {place}: tokens must be integers, got {ids.dtype}")
    if ids.ndim == 1:
        found = {name: value[None] for name, value in found.items()}
        ids = found["input_ids"]
    if ids.ndim != 2:
        raise ShapeError(f"batch {place} has tokens of shape {tuple(ids.shape)}; expected (length,) or (n, length)")
    for name, value in found.items():
        expected = ids.shape if name in ("labels", "attention_mask") else ids.shape[:1]
        if value.shape[: len(expected)] != expected:
            raise ShapeError(f"batch {place}: {name} {tuple(value.shape)} does not fit tokens {tuple(ids.shape)}")
    return found
