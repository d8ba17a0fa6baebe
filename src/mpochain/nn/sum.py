"""A linear layer whose weight is that of several layers together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import DTypeError, ShapeError, SpecError
from mpochain.execute.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.planning import Memory

__all__ = ["SumLinear"]


class SumLinear(nn.Module):
    """``y = x (W_1 + W_2 + ..)^T + b``, each ``W`` kept by a layer of its own: ``(..., in) -> (..., out)``.

    For low rank by its own rows beside a chain, which take fewer parameters together than either would alone. Sums of
    chains alone are one :class:`MPOLinear` with ``terms=``. A bias belongs to one of the parts.

    Args:
        parts: two or more layers, each an :class:`InterpolativeLinear` or an :class:`MPOLinear`, of one shape; they
            become submodules and are not copied.

    Raises:
        SpecError: fewer than two parts, or biases in several.
        ShapeError: parts of several shapes.
        DTypeError: another type of layer.

    Example:
        >>> import torch
        >>> parts = InterpolativeLinear(64, 48, rank=6), MPOLinear(64, 48, max_bond=2, bias=False)
        >>> layer = SumLinear(parts)
        >>> layer(torch.zeros(2, 5, 64)).shape, layer.macs()
        (torch.Size([2, 5, 48]), 2172)
    """

    def __init__(self, parts: Iterable[InterpolativeLinear | MPOLinear]) -> None:
        super().__init__()
        given = list(parts)
        for part in given:
            if not isinstance(part, InterpolativeLinear | MPOLinear):
                raise DTypeError(f"a sum has InterpolativeLinear and MPOLinear as parts, got {type(part).__name__}")
        if len(given) < 2:
            raise SpecError(f"a sum has two parts at least, got {len(given)}; use the layer itself")
        shapes = {(part.out_features, part.in_features) for part in given}
        if len(shapes) > 1:
            raise ShapeError(f"the parts of a sum have one shape (out, in), got {sorted(shapes)}")
        if sum(part.bias is not None for part in given) > 1:
            raise SpecError("only one part of a sum may have a bias; make the others with bias=False")
        self.out_features, self.in_features = given[0].out_features, given[0].in_features
        self.parts = nn.ModuleList(given)
        self._kept: Kept | None = None

    @property
    def bias(self) -> Tensor | None:
        """That of the part that has one."""
        return next((part.bias for part in self._parts() if part.bias is not None), None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        first, *others = self._parts()
        return sum((part.weight for part in others), start=first.weight)

    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function, sharing no memory."""
        return linear_of(self.weight.detach(), self.bias, self.training)

    def macs(self) -> int:
        """Multiply-adds of one input row, chains swept without folding."""
        return sum(part.macs() for part in self._parts())

    def reset_parameters(self) -> None:
        """Draw new parameters of every part."""
        for part in self._parts():
            part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        if not x.ndim or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__} got x of shape {tuple(x.shape)}; expected (..., {self.in_features})"
            )
        if self._kept is not None and not (torch.is_grad_enabled() and self._learns(x)):
            held = [each for part in self.parts for each in part.parameters(recurse=False)]
            made = self._kept.get(x, [each for each in held if each.ndim > 1], lambda: self.weight)
            if made is not None:
                return F.linear(x, made, self.bias)
        first, *others = self.parts
        y: Tensor = first(x)
        for part in others:
            y = y + part(x)
        return y

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> SumLinear:
        """Choose how the layer and its parts are run; fast execution keeps one dense matrix for all of them.

        Raises:
            SpecError: an unknown ``memory``.
        """
        for part in self._parts():
            part.set_execution(memory=memory, autotune=autotune)
        self._kept = Kept() if memory == "fast" else None
        return self

    def _learns(self, x: Tensor) -> bool:
        return x.requires_grad or any(each.requires_grad for each in self.parameters())

    def extra_repr(self) -> str:
        """Features and bias, for ``print(layer)``; the parts print themselves."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"

    def _parts(self) -> list[InterpolativeLinear | MPOLinear]:
        return cast("list[InterpolativeLinear | MPOLinear]", list(self.parts))  # checked when they were given
