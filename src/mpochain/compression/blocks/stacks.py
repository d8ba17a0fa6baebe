"""Stacks of blocks in a model: the items of an ``nn.ModuleList`` or ``nn.Sequential`` that hold layers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpochain.errors import ArgumentError

__all__ = ["Stack", "largest_stack", "stacks"]


@dataclass(frozen=True, eq=False)
class Stack:
    """Consecutive blocks of a model.

    A block that is itself a layer may be replaced, so the blocks are read from the container at every access.

    Attributes:
        name: name of the container in the model; "" for the model itself.
        container: the ``nn.ModuleList`` or ``nn.Sequential``.
        first: index of the first block.
        last: index past the last block.
        layers: number of the layers asked for in all blocks.
    """

    name: str
    container: Any
    first: int
    last: int
    layers: int

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in the order of the container."""
        return list(self.container)[self.first : self.last]

    def name_of(self, number: int) -> str:
        """Name of a block in the model, by its number in this stack."""
        return f"{self.name}.{self.first + number}" if self.name else str(self.first + number)


def stacks(model: nn.Module, layers: Collection[nn.Module]) -> list[Stack]:
    """All stacks of a model that hold layers, in the order of the model; none is inside another.

    Of two stacks of which one is inside the other, the one with more layers counts, and of equal ones the outer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Sequential(nn.Linear(2, 2)))
        >>> layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        >>> [(stack.name, stack.first, stack.last) for stack in stacks(model, layers)]
        [('', 0, 3)]
    """
    candidates = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            counts = [sum(part in layers for part in item.modules()) for item in module]
            holding = [k for k, count in enumerate(counts) if count]
            if holding:
                candidates.append(Stack(name, module, holding[0], holding[-1] + 1, sum(counts)))
    order = {stack: number for number, stack in enumerate(candidates)}
    chosen: list[Stack] = []
    for stack in sorted(candidates, key=lambda stack: (-stack.layers, order[stack])):
        inside = set(stack.container.modules())
        if not any(other.container in inside or stack.container in other.container.modules() for other in chosen):
            chosen.append(stack)
    return sorted(chosen, key=order.__getitem__)


def largest_stack(model: nn.Module, layers: Collection[nn.Module], option: str) -> Stack:
    """The stack with the most layers.

    Args:
        model: the model.
        layers: layers of the model.
        option: option of :func:`mpochain.compress` that needs the stack, for messages.

    Raises:
        ArgumentError: there is none, or it holds a block twice.
    """
    largest = max(stacks(model, layers), key=lambda stack: stack.layers, default=None)
    if largest is None:
        raise ArgumentError(
            f"{option} needs a model with its blocks in one nn.ModuleList or nn.Sequential; leave it out"
        )
    if len(set(largest.blocks)) < len(largest.blocks):
        raise ArgumentError(f"{option} needs a separate module for each block; leave it out")
    return largest
