"""What layers have in common that are made of other compressed layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import DTypeError, ShapeError
from mpochain.execution.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.planning import Memory

__all__ = ["ComposedLinear", "Part"]

# What composed layers are made of: themselves not composed, so that nothing is nested.
Part = InterpolativeLinear | MPOLinear


class ComposedLinear(nn.Module, ABC):
    """``y = x W^T + b`` with ``W`` made of parts: ``(..., in_features) -> (..., out_features)``.

    A subclass says what its ``weight`` and ``bias`` are, and how it is run without them in :meth:`compact`. Fast
    execution keeps one dense matrix for all parts.

    Args:
        parts: one or more, of the shape of the whole.

    Raises:
        DTypeError: a part of another type.
    """

    bias: Tensor | None

    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, Part):
                raise DTypeError(
                    f"{type(self).__name__} is made of InterpolativeLinear and MPOLinear, got {type(part).__name__}"
                )
        self.in_features, self.out_features = parts[0].in_features, parts[0].out_features
        self.parts = nn.ModuleList(parts)
        self._kept: Kept | None = None

    @property
    def memory(self) -> Memory:
        """How the layer is run."""
        return "compact" if self._kept is None else "fast"

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""

    @abstractmethod
    def compact(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)`` without the dense matrix, with the bias."""

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
        return self.compact(x)

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> Self:
        """Choose how the layer and its parts are run, see :func:`mpochain.surgery.set_execution`, and return it.

        Raises:
            SpecError: an unknown ``memory``.
        """
        for part in self._parts():
            part.set_execution(memory=memory, autotune=autotune)
        self._kept = Kept() if memory == "fast" else None
        return self

    def extra_repr(self) -> str:
        """Features and bias, for ``print(layer)``; the parts print themselves."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"

    def _learns(self, x: Tensor) -> bool:
        return x.requires_grad or any(each.requires_grad for each in self.parameters())

    def _parts(self) -> list[Part]:
        return cast("list[Part]", list(self.parts))  # checked when they were given
