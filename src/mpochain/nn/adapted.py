"""A frozen dense layer beside a chain that is trained: an adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, ShapeError
from mpochain.nn.dense import dense_parameters
from mpochain.nn.linear import MPOLinear
from mpochain.spec import ChainSpec

__all__ = ["AdaptedLinear"]


class AdaptedLinear(nn.Module):
    """``y = base(x) + delta(x)``: a dense layer, and a chain beside it: ``(..., in) -> (..., out)``.

    The last core of the chain is zero at the start, so that the layer computes what its base does.

    Args:
        base: a ``torch.nn.Linear`` or Hugging Face ``Conv1D``; freeze its parameters to train the chain alone.
        spec: spec of the chain, of the shape ``(out, in)`` of the base.

    Attributes:
        base: the dense layer.
        delta: the chain, without bias, in the type and on the device of the base.

    Raises:
        DTypeError: the base is another layer.
        ShapeError: the spec has another shape.

    Example:
        >>> layer = AdaptedLinear(nn.Linear(12, 8), ChainSpec((2, 4), (3, 4), 2))
        >>> x = torch.ones(3, 12)
        >>> torch.equal(layer(x), layer.base(x)), sum(p.numel() for p in layer.delta.parameters())
        (True, 44)
    """

    def __init__(self, base: nn.Module, spec: ChainSpec) -> None:
        super().__init__()
        weight, _ = dense_parameters(base)
        if spec.shape != tuple(weight.shape):
            raise ShapeError(f"the spec is one of a {spec.shape} matrix, and the layer has {tuple(weight.shape)}")
        self.base = base
        out, in_ = spec.shape
        self.delta = MPOLinear(in_, out, spec=spec, bias=False, dtype=weight.dtype, device=weight.device)
        self.reset_parameters()

    @property
    def in_features(self) -> int:
        """Size of each input row."""
        return self.delta.in_features

    @property
    def out_features(self) -> int:
        """Size of each output row."""
        return self.delta.out_features

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)`` of both together, built at every access."""
        return dense_parameters(self.base)[0] + self.delta.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base."""
        return dense_parameters(self.base)[1]

    def reset_parameters(self) -> None:
        """Draw a new chain, whose last core is zero."""
        self.delta.reset_parameters()
        with torch.no_grad():
            getattr(self.delta, self.delta.core_names[0][-1]).zero_()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Linear, which callers may use
        """``(..., in_features)`` to ``(..., out_features)``."""
        y: Tensor = self.base(input)
        return y + self.delta(input).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base, with the chain added to its weight.

        Raises:
            ArgumentError: the sum is not finite.
        """
        weight = self.weight
        if not weight.isfinite().all():
            raise ArgumentError("the weight with its adapter is not finite; the adapter holds NaN or is too large")
        dense_parameters(self.base)[0].copy_(weight)
        return self.base

    def extra_repr(self) -> str:
        """The spec of the chain, for ``print(layer)``."""
        return str(self.delta.specs[0])
