"""Linear layer whose weight is the sum of several compressed weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field
from torch import Tensor, nn

from mpochain.errors import ArgumentError, ShapeError
from mpochain.nn.composed import ComposedLinear, Part
from mpochain.nn.entry import MOST_PARTS, LayerEntry
from mpochain.nn.interpolative import InterpolativeEntry, InterpolativeLinear
from mpochain.nn.linear import ChainsEntry, MPOLinear
from mpochain.nn.linear_chain import LinearChain, LinearChainEntry

__all__ = ["SumEntry", "SumLinear"]

_PartEntry = Annotated[ChainsEntry | InterpolativeEntry | LinearChainEntry, Field(discriminator="kind")]


class SumEntry(LayerEntry):
    """Entry of a :class:`SumLinear`; no part is a sum itself, so there is no nesting."""

    kind: Literal["sum"] = "sum"
    parts: Annotated[list[_PartEntry], Field(min_length=2, max_length=MOST_PARTS)]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.parts[0].shape


class SumLinear(ComposedLinear):
    """``y = x (W_1 + W_2 + ..)^T + b``, where a layer stores each ``W``: ``(..., in) -> (..., out)``.

    Its use is an interpolative low-rank part plus a chain, which together can need fewer parameters than either alone.
    For a sum of chains only, use one :class:`~mpochain.MPOLinear` with ``terms=``. At most one part has a bias.

    Args:
        parts: two or more ``InterpolativeLinear``, ``LinearChain`` or ``MPOLinear`` of the same shape; they become
            submodules and are not copied.

    Raises:
        ArgumentError: fewer than two parts, or more than one bias.
        ShapeError: parts of different shapes.
        DTypeError: another type of layer.

    Example:
        >>> import torch
        >>> from mpochain import InterpolativeLinear, MPOLinear
        >>> parts = InterpolativeLinear(64, 48, rank=6), MPOLinear(64, 48, max_bond=2, bias=False)
        >>> layer = SumLinear(parts)
        >>> layer(torch.zeros(2, 5, 64)).shape, layer.macs()
        (torch.Size([2, 5, 48]), 2172)
    """

    kind = "sum"
    Entry = SumEntry

    def __init__(self, parts: Iterable[Part]) -> None:
        layers = list(parts)
        if len(layers) < 2:
            raise ArgumentError(f"a sum needs at least two parts, got {len(layers)}; use the layer itself")
        super().__init__(layers)
        shapes = {(part.out_features, part.in_features) for part in layers}
        if len(shapes) > 1:
            raise ShapeError(f"the parts of a sum must have the same shape (out, in), got {sorted(shapes)}")
        if sum(part.bias is not None for part in layers) > 1:
            raise ArgumentError("only one part of a sum may have a bias; make the others with bias=False")

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read only: set it on the part that has it
        """The bias of the part that has one; None if no part has."""
        return next((part.bias for part in self._parts() if part.bias is not None), None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        first, *others = self._parts()
        return sum((part.weight for part in others), start=first.weight)

    def entry(self) -> SumEntry:
        """The entries of all parts."""
        return SumEntry(parts=[part.entry() for part in self._parts()])

    @classmethod
    def from_entry(cls, entry: SumEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        kinds: dict[str, Any] = {part.kind: part for part in (InterpolativeLinear, LinearChain, MPOLinear)}
        return cls([kinds[part.kind].from_entry(part) for part in entry.parts])

    def form(self) -> str:
        """The forms of all parts."""
        return " + ".join(part.form() for part in self._parts())

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:
        """See :meth:`mpochain.nn.CompressedLayer.as_linears`; parts of low rank are shared with the new layer."""
        parts = [cast("Part", part.as_linears(dequantize=dequantize)) for part in self._parts()]
        if all(new is old for new, old in zip(parts, self._parts(), strict=True)):
            return self
        return type(self)(parts).train(self.training)

    def compact(self, x: Tensor) -> Tensor:
        """The sum of the outputs of all parts; see :meth:`mpochain.nn.CompressedLayer.compact`."""
        first, *others = self.parts
        y: Tensor = first(x)
        for part in others:
            y = y + part(x)
        return y
