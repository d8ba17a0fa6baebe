"""A linear layer whose weight is that of several layers together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mpochain.errors import ShapeError, SpecError
from mpochain.nn.composed import ComposedLinear, Part

__all__ = ["SumLinear"]


class SumLinear(ComposedLinear):
    """``y = x (W_1 + W_2 + ..)^T + b``, each ``W`` kept by a layer of its own: ``(..., in) -> (..., out)``.

    For low rank by its own rows beside a chain, which take fewer parameters together than either would alone. Sums of
    chains alone are one :class:`~mpochain.MPOLinear` with ``terms=``. A bias belongs to one of the parts.

    Args:
        parts: two or more layers, each an ``InterpolativeLinear`` or an ``MPOLinear``, of one shape; they become
            submodules and are not copied.

    Raises:
        SpecError: fewer than two parts, or biases in several.
        ShapeError: parts of several shapes.
        DTypeError: another type of layer.

    Example:
        >>> import torch
        >>> from mpochain import InterpolativeLinear, MPOLinear
        >>> parts = InterpolativeLinear(64, 48, rank=6), MPOLinear(64, 48, max_bond=2, bias=False)
        >>> layer = SumLinear(parts)
        >>> layer(torch.zeros(2, 5, 64)).shape, layer.macs()
        (torch.Size([2, 5, 48]), 2172)
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        given = list(parts)
        if len(given) < 2:
            raise SpecError(f"a sum has two parts at least, got {len(given)}; use the layer itself")
        super().__init__(given)
        shapes = {(part.out_features, part.in_features) for part in given}
        if len(shapes) > 1:
            raise ShapeError(f"the parts of a sum have one shape (out, in), got {sorted(shapes)}")
        if sum(part.bias is not None for part in given) > 1:
            raise SpecError("only one part of a sum may have a bias; make the others with bias=False")

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # read only: to be set on the part that has it
        """That of the part that has one."""
        return next((part.bias for part in self._parts() if part.bias is not None), None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        first, *others = self._parts()
        return sum((part.weight for part in others), start=first.weight)

    def compact(self, x: Tensor) -> Tensor:
        """One part after the other; see :meth:`ComposedLinear.compact`."""
        first, *others = self.parts
        y: Tensor = first(x)
        for part in others:
            y = y + part(x)
        return y
