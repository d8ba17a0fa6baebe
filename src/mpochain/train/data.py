"""Training data: named tensors whose first axis counts examples, in the order of batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mpochain.distributed import Team
from mpochain.errors import ArgumentError, DTypeError

__all__ = ["TrainingData", "batch_list", "tensors_of"]


@dataclass(frozen=True, eq=False)
class TrainingData(ABC):
    """Examples of equal shape, ``n`` of them.

    Attributes:
        inputs: arguments of the model, each ``(n, ...)``.
        labels: ``(n, ...)``; None without labels.
        named: whether the model is called with keyword arguments instead of one positional argument.
        indices: ``(n,)``, indices of these examples among all examples of the run.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None
    named: bool
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    @abstractmethod
    def targets(self) -> int:
        """Number of things to predict."""

    @abstractmethod
    def run(self, model: nn.Module, **options: bool) -> Any:
        """Call a model on these examples and return its output."""

    def sha256(self) -> str:
        """Return the SHA-256 of all inputs and labels, in hexadecimal."""
        digest = hashlib.sha256(str(self.named).encode())
        labels = [] if self.labels is None else [("labels", self.labels)]
        for name, value in [*sorted(self.inputs.items()), *labels]:
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def select(self, positions: Tensor) -> Self:
        """Return the examples at the given positions ``(k,)``."""
        inputs = {name: value[positions] for name, value in self.inputs.items()}
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, inputs=inputs, labels=labels, indices=self.indices[positions])

    def to(self, device: torch.device) -> Self:
        """Return the examples on a device; ``indices`` stay on the CPU."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels.to(device))

    def batch(self, step: int, size: int, seed: int) -> Self:
        """Return the batch of a step. Each epoch uses every example once, in an order drawn from seed and epoch.

        The batch depends only on step, size and seed, so a resumed run sees the same batches.
        """
        positions: list[Tensor] = []
        for k in range(step * size, (step + 1) * size):
            epoch, position = divmod(k, len(self))
            if not positions or not position:
                generator = torch.Generator("cpu").manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
                order = torch.randperm(len(self), generator=generator, device="cpu")
            positions.append(order[position])
        return self.select(torch.stack(positions))

    def shared(self, team: Team, count: int) -> Iterator[tuple[Self, float]]:
        """Yield the examples of this process in at most ``count`` parts, see :meth:`split`.

        The shares are such that the mean over the processes is that of all examples. All processes get as many parts,
        since they meet after each.

        Args:
            team: the processes that share these examples.
            count: number of parts.
        """
        own = torch.arange(len(self), device="cpu").tensor_split(team.size)[team.rank]
        for positions in own.tensor_split(min(count, len(self) // team.size)):
            part = self.select(positions)
            yield part, team.size * part.targets / self.targets

    def split(self, count: int) -> Iterator[tuple[Self, float]]:
        """Yield ``count`` equal parts, each with its share of the targets."""
        for positions in torch.arange(len(self), device="cpu").chunk(count):
            part = self.select(positions)
            yield part, part.targets / self.targets


def batch_list(batches: Any) -> Sequence[Any]:
    """Return the batches of any form that :func:`mpochain.finetune` accepts, as a list.

    Raises:
        ArgumentError: there are none.
        DTypeError: the data have another type.
    """
    items: Sequence[Any] = [batches] if isinstance(batches, Tensor | Mapping) else batches
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise DTypeError(
            "expected batches as a tensor of windows, a mapping of named tensors, or a list of these, got "
            f"{type(batches).__name__}; windows are drawn from all batches, so put them into a list"
        )
    if not len(items):
        raise ArgumentError("batches is empty; give windows of tokens, (n, length)")
    return items


def tensors_of(values: Mapping[str, Any], position: int) -> dict[str, Tensor]:
    """Return the arguments of one batch as tensors.

    Raises:
        DTypeError: a value cannot be converted.
    """
    tensors = {}
    for name, value in values.items():
        try:
            tensors[name] = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise DTypeError(
                f"batch {position}: {name} is {type(value).__name__}, which cannot be converted to a tensor: {error}"
            ) from error
    return tensors
