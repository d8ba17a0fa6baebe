"""Inputs of exported graphs: an example, the axes that are symbolic, and random inputs of other shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Sample"]

# Batch and length of the inputs with which a file is checked; one row and one token are among them.
_SHAPES = ((1, 5), (3, 1), (4, 9))


@dataclass(frozen=True, eq=False)
class Sample:
    """Example inputs of a model, from which further ones are drawn.

    Attributes:
        names: names of the inputs.
        tensors: the example.
        axes: for each input, the symbolic axes, as ``torch.export`` takes them.
        longest: largest length.
        vocabulary: number of tokens; None for inputs of a user's example.
        has_length: for each input, whether the second axis is symbolic.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    axes: tuple[dict[int, Any], ...]
    longest: float
    vocabulary: int | None
    has_length: tuple[bool, ...] = ()

    def symbolic(self, program: Any) -> Sample:
        """The same sample, with the axes that are symbolic in a recorded graph."""
        names = program.graph_signature.user_inputs
        shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in names}
        has_length = tuple(
            len(shapes[name]) > 1 and 1 in axes and isinstance(shapes[name][1], torch.SymInt)
            for name, axes in zip(names, self.axes, strict=True)
        )
        return dataclasses.replace(self, has_length=has_length)

    def others(self) -> list[tuple[Tensor, ...]]:
        """Random inputs of three other shapes, the same in every call."""
        generator = torch.Generator().manual_seed(0)
        return [self._drawn(rows, int(min(length, self.longest)), generator) for rows, length in _SHAPES]

    def _drawn(self, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        drawn = []
        for name, tensor, has_length in zip(self.names, self.tensors, self.has_length, strict=True):
            shape = [rows, *tensor.shape[1:]]
            if has_length:
                shape[1] = length
            if name == "attention_mask":
                values = torch.ones(shape, dtype=tensor.dtype)
                if rows > 1 and length > 1:
                    values[0, 0] = 0  # padding on the left
            elif self.vocabulary is not None:
                values = torch.randint(self.vocabulary, shape, generator=generator)
            else:
                values = _like(tensor, shape, generator)
            drawn.append(values.to(tensor.device))
        return tuple(drawn)

    def compared(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Which rows and tokens of the outputs are compared: those that are no padding; None for all."""
        masks = [tensor for name, tensor in zip(self.names, inputs, strict=True) if name == "attention_mask"]
        return masks[0].bool() if masks else None


def _like(tensor: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Values drawn from those of an example, so that tokens and classes stay in their range."""
    values = tensor.detach().reshape(-1)
    count = torch.Size(shape).numel()
    return values.cpu()[torch.randint(len(values), (count,), generator=generator)].reshape(tuple(shape))
