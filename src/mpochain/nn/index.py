"""Index buffers of layers and their range of valid values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.errors import ArgumentError

__all__ = ["Index"]


@dataclass(frozen=True, eq=False)
class Index:
    """An index buffer of a layer and its range of valid values.

    Attributes:
        values: the buffer, int32.
        size: valid values are 0 to ``size - 1``.
        permutation: whether each valid value occurs exactly once.
    """

    values: Tensor
    size: int
    permutation: bool

    def require_valid(self, name: str) -> None:
        """Raise an error for indices out of range or, in a permutation, missing or repeated.

        On the meta device only the type is checked.

        Raises:
            ArgumentError: invalid values, or another type than int32. The message starts with ``name``.

        Example:
            >>> Index(torch.tensor([1, 0], dtype=torch.int32), 2, permutation=True).require_valid("rows")
        """
        if self.values.dtype != torch.int32:
            raise ArgumentError(f"{name} must hold int32 indices, got {self.values.dtype}")
        if self.values.device.type == "meta" or not self.values.numel():
            return
        if self.permutation:
            expected = torch.arange(self.size, device=self.values.device)
            if not torch.equal(self.values.long().sort().values, expected):
                raise ArgumentError(f"{name} must hold each index from 0 to {self.size - 1} once")
            return
        low, high = (int(bound) for bound in self.values.aminmax())
        if low < 0 or high >= self.size:
            raise ArgumentError(f"{name} must hold indices from 0 to {self.size - 1}, got {low if low < 0 else high}")
