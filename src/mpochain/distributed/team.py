"""Processes that work on one model together, each with the whole model: who does what, and how results meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mpochain.distributed.processes import sendable
from mpochain.errors import ArgumentError, MPOError

__all__ = ["ALONE", "Team", "team_of_group"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """The processes of the default group of ``torch.distributed``, or a single one.

    Every method that waits for others must be called by all of them, in the same order. An error of one process is
    raised in all of them, where they next meet, so that none waits for one that has stopped.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.

    Example:
        >>> ALONE.is_first, ALONE.works_on(3), ALONE.gathered(5)
        (True, True, [5])
    """

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no other processes."""
        return self.size == 1

    def works_on(self, number: int) -> bool:
        """Whether this process works on the item of a number, from 1.

        Example:
            >>> [Team(1, 3).works_on(number) for number in range(1, 7)]
            [False, True, False, False, True, False]
        """
        return (number - 1) % self.size == self.rank

    def dealt(self, costs: Mapping[str, float]) -> dict[str, int]:
        """The process of each name, so that all have about as much to do; the most expensive are dealt first.

        Example:
            >>> Team(0, 2).dealt({"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0})
            {'a': 0, 'b': 1, 'c': 1, 'd': 0}
        """
        loads = [0.0] * self.size
        owners = {}
        for name in sorted(costs, key=lambda name: -costs[name]):
            owner = loads.index(min(loads))
            loads[owner] += costs[name]
            owners[name] = owner
        return {name: owners[name] for name in costs}

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in their order."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """The value of the first process."""
        return self.sent(value, 0)

    def sent(self, value: Value, owner: int) -> Value:
        """The value of one process; what others give does not count."""
        if self.is_alone:
            return value
        box = [value if self.rank == owner else None]
        dist.broadcast_object_list(box, src=owner)
        received: Any = box[0]
        return received

    def copied(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to those of the first process."""
        if self.is_alone:
            return
        with torch.no_grad():
            for tensor in tensors:
                # Pickled, since not every backend sends every type, such as bool.
                first = self.from_first(tensor.detach().cpu() if self.is_first else None)
                assert first is not None
                tensor.copy_(first)

    def summed(self, tensor: Tensor, owner: int) -> Tensor:
        """The sum of the tensors of all processes, in the process ``owner``; in place."""
        if not self.is_alone:
            dist.reduce(tensor, dst=owner)
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do a block in every process, and wait for all; an error of one is raised in all of them.

        Nothing within the block may wait for other processes.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.is_alone:
            if error is not None:
                raise error
            return
        errors = self.gathered(sendable(error))
        if error is not None:
            raise error
        for rank, other in enumerate(errors):
            if other is not None:
                raise _of_process(other, rank)

    def alike(self, what: Mapping[str, Any]) -> None:
        """Compare descriptions, by name, with those of the first process.

        Raises:
            ArgumentError: they differ; the same error in all processes, which names the difference.
        """
        described = self.gathered({name: str(value) for name, value in what.items()})
        for rank, other in enumerate(described):
            for name in sorted({*described[0], *other}):
                if other.get(name) != described[0].get(name):
                    raise ArgumentError(
                        f"the processes differ: {name} is {_short(described[0].get(name))} in process 0 and "
                        f"{_short(other.get(name))} in process {rank}; give all of them the same"
                    )


ALONE = Team(0, 1)


def team_of_group(*, together: bool = True) -> Team:
    """The processes of the default group; :data:`ALONE` without one.

    Args:
        together: False for :data:`ALONE` although there may be a group, whose processes work by themselves.

    Example:
        >>> team_of_group()
        Team(rank=0, size=1)
    """
    if not (together and dist.is_available() and dist.is_initialized()):
        return ALONE
    return Team(dist.get_rank(), dist.get_world_size())


def _of_process(error: BaseException, rank: int) -> BaseException:
    """The error of another process, which is named if the error is ours."""
    if not isinstance(error, MPOError):
        return MPOError(f"process {rank} stopped with {type(error).__name__}: {error}")
    error.add_note(f"in process {rank}")
    return error


def _short(text: str | None) -> str:
    text = "missing" if text is None else text
    return text if len(text) <= 60 else f"{text[:57]}..."
