"""Hidden states of many batches, in memory or in a memory-mapped file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mpochain.system.temporary import TemporaryFolder

__all__ = ["HiddenStates"]


class HiddenStates:
    """One tensor per batch, each replaced in turn; in a temporary file if all together exceed the room in memory.

    Args:
        states: first tensors, one per batch; copied.
        room: bytes that may be held in memory.

    Example:
        >>> states = HiddenStates([torch.ones(2, 3), torch.zeros(1, 3)], room=0)
        >>> states[0] = states[0] + 1
        >>> states[0].sum(), len(states), states.on_disk
        (tensor(12.), 2, True)
    """

    def __init__(self, states: Sequence[Tensor], *, room: int) -> None:
        self.on_disk = sum(state.numel() * state.element_size() for state in states) > room
        self._states: list[Tensor] = []
        self._folder = TemporaryFolder() if self.on_disk and states else None
        for number, state in enumerate(states):
            self._states.append(self._stored(number, state))
        self._devices = [state.device for state in states]

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, number: int) -> Tensor:
        state = self._states[number]
        return state if self._folder is None else state.clone().to(self._devices[number])

    def __setitem__(self, number: int, state: Tensor) -> None:
        stored = self._states[number]
        if self._folder is not None and stored.shape == state.shape and stored.dtype == state.dtype:
            stored.copy_(state)
        else:
            self._states[number] = self._stored(number, state)

    def close(self) -> None:
        """Release memory and files."""
        self._states.clear()
        if self._folder is not None:
            self._folder.remove()

    def _stored(self, number: int, state: Tensor) -> Tensor:
        if self._folder is None:
            return state.detach().clone()
        size = math.prod(state.shape)
        file = self._folder.path / f"{number}-{'x'.join(map(str, state.shape))}-{state.dtype}"
        # The pages of a mapped file are written to disk where memory is short.
        mapped = (
            torch.from_file(str(file), shared=True, size=size, dtype=state.dtype)
            if size
            else torch.empty(0, dtype=state.dtype)
        )
        return mapped.reshape(state.shape).copy_(state)
