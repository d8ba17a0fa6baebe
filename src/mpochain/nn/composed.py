"""Base class of layers composed of other compressed layers."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from mpochain.errors import DTypeError
from mpochain.nn.index import Index
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.linear import MPOLinear
from mpochain.nn.linear_chain import LinearChain

__all__ = ["ComposedLinear", "Part"]

# Layers that a composed layer may consist of; none is composed itself, so there is no nesting.
Part = InterpolativeLinear | LinearChain | MPOLinear


class ComposedLinear(CompressedLayer, ABC):
    """``y = x W^T + b`` with ``W`` composed of the weights of parts: ``(..., in_features) -> (..., out_features)``.

    A subclass defines ``weight``, ``bias`` and :meth:`compact`. With ``cache=True`` one dense matrix is cached for all
    parts together.

    Args:
        parts: one or more layers of the composed layer's shape; they become submodules.

    Raises:
        DTypeError: a part of another type.
    """

    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, Part):
                raise DTypeError(
                    f"the parts of {type(self).__name__} must be InterpolativeLinear, LinearChain or MPOLinear, "
                    f"got {type(part).__name__}"
                )
        self.in_features, self.out_features = parts[0].in_features, parts[0].out_features
        self.parts = nn.ModuleList(parts)

    def indices(self) -> dict[str, Index]:
        """The index buffers of all parts."""
        return {
            f"parts.{number}.{name}": index
            for number, part in enumerate(self._parts())
            for name, index in part.indices().items()
        }

    def macs(self) -> int:
        """Multiply-adds per input row; chains are swept site by site, without folding."""
        return sum(part.macs() for part in self._parts())

    def reset_parameters(self) -> None:
        """Draw new parameters of every part."""
        for part in self._parts():
            part.reset_parameters()

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        for part in self._parts():
            part.set_execution(cache=cache, autotune=autotune)
        super()._set_execution(cache, autotune)

    def _kept_from(self) -> list[Tensor] | None:
        kept: list[Tensor] = []
        for part in self._parts():
            own = part._kept_from()
            if own is None:
                return None
            kept += own
        return kept

    def _kept_buffers(self) -> Sequence[Tensor]:
        return ()  # orders change only together with the cores

    def _parts(self) -> list[Part]:
        return cast("list[Part]", list(self.parts))  # their types were checked by the constructor
