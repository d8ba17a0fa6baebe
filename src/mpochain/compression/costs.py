"""Costs of a layer's choices: parameters, bytes and multiply-adds, alone or as a weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["Cost", "Costs"]

# Costs by name. "elements" is storage in elements of the dense weight: bytes divided by bytes per element, rounded up.
Cost = Literal["elements", "parameters", "bytes", "macs"]

_Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of each choice of a layer; all arrays are ``(n,)``, int64.

    Attributes:
        parameters: numbers stored instead of the weight; integer indices count only in ``bytes``.
        bytes: bytes stored, integer indices included.
        macs: multiply-adds per input row, or per row that an embedding looks up.
        element_size: bytes of one entry of the dense weight.
    """

    parameters: NDArray[np.int64]
    bytes: NDArray[np.int64]
    macs: NDArray[np.int64]
    element_size: int

    def __post_init__(self) -> None:
        for name in ("parameters", "bytes", "macs"):
            object.__setattr__(self, name, np.atleast_1d(np.asarray(getattr(self, name), dtype=np.int64)))
        shapes = {self.parameters.shape, self.bytes.shape, self.macs.shape}
        if len(shapes) != 1 or self.parameters.ndim != 1:
            raise ArgumentError(f"parameters, bytes and macs must be of one length, got shapes {sorted(shapes)}")

    @classmethod
    def of(cls, target: Target, parameters: Any, macs: Any, *, index_bytes: int = 0) -> Costs:
        """Costs of choices whose parameters have the dtype of the dense weight.

        Args:
            target: the dense layer.
            parameters: ``(n,)``, how many numbers each choice stores.
            macs: ``(n,)``, multiply-adds of each choice.
            index_bytes: bytes of the integer indices that every choice stores in addition.

        Example:
            >>> from torch import nn
            >>> costs = Costs.of(Target.open("up", nn.Linear(8, 8)), [16, 32], [16, 32], index_bytes=6)
            >>> costs.bytes, costs.elements  # float32: four bytes an element, rounded up
            (array([ 70, 134]), array([18, 34]))
        """
        count = np.asarray(parameters, dtype=np.int64)
        return cls(count, count * target.element_size + index_bytes, macs, target.element_size)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, part: slice) -> Costs:
        return Costs(self.parameters[part], self.bytes[part], self.macs[part], self.element_size)

    @property
    def elements(self) -> NDArray[np.int64]:
        """Storage in elements of the dense weight: ``bytes / element_size``, rounded up."""
        return -(-self.bytes // self.element_size)

    def by(self, cost: Cost | Mapping[Cost, float] = "bytes") -> _Values:
        """One cost by name, or a weighted sum of several.

        Args:
            cost: the name of a cost, or a price for each name, such as ``{"bytes": 1.0, "macs": 0.01}``.

        Raises:
            ArgumentError: a name is unknown, no cost is named, or a price is negative or not finite.

        Example:
            >>> costs = Costs(np.array([10]), np.array([40]), np.array([5]), 4)
            >>> costs.by("macs"), costs.by({"bytes": 1.0, "macs": 2.0})
            (array([5]), array([50.]))
        """
        prices = {cost: 1.0} if isinstance(cost, str) else cost
        known = get_args(Cost)
        for name, price in prices.items():
            if name not in known:
                raise ArgumentError(f"there is no cost {name!r}; there are {', '.join(known)}")
            if not (np.isfinite(price) and price >= 0):
                raise ArgumentError(f"the price of {name} must be a finite number of at least 0, got {price!r}")
        if not prices:
            raise ArgumentError(f"no cost is named; name one or more of {', '.join(known)}")
        if isinstance(cost, str):
            values: _Values = getattr(self, cost)
            return values
        return np.sum([price * getattr(self, name) for name, price in prices.items()], axis=0)

    @staticmethod
    def joined(*parts: Costs) -> Costs:
        """Concatenate the costs of several lists of choices for one layer.

        Raises:
            ArgumentError: the lists belong to layers of different element sizes.
        """
        sizes = {part.element_size for part in parts}
        if len(sizes) != 1:
            raise ArgumentError(f"choices of one layer must have one element size, got {sorted(sizes)}")
        parameters, sizes_in_bytes, macs = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("parameters", "bytes", "macs")
        )
        return Costs(parameters, sizes_in_bytes, macs, sizes.pop())
