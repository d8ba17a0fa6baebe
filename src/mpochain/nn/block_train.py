"""Block tensor train: two block-diagonal factors with a permutation between them; Monarch at bond 1."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from mpochain import shapes
from mpochain.errors import ArgumentError, SpecError
from mpochain.nn.entry import LayerEntry, Size
from mpochain.nn.initialization import uniform_bias_
from mpochain.nn.layer import CompressedLayer

__all__ = ["BlockTrainEntry", "BlockTrainLinear", "block_train_dims", "block_train_parameters"]

_Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]


class BlockTrainEntry(LayerEntry):
    """Entry of a :class:`BlockTrainLinear`."""

    kind: Literal["block_train"] = "block_train"
    out_dims: _Pair
    in_dims: _Pair
    bond: Size
    bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return math.prod(self.out_dims), math.prod(self.in_dims)


class BlockTrainLinear(CompressedLayer):
    """``y = x W^T + b`` with ``W`` as a block tensor train of bond ``r``: ``(..., in) -> (..., out)``.

    With ``in = i_1 i_2`` and ``out = o_1 o_2``, the weight consists of ``o_1 i_1`` tiles ``(o_2, i_2)`` of rank ``r``
    each. All of them together are two block-diagonal matrices: the first multiplies each of ``i_1`` parts of the input,
    the second each of ``o_1`` parts of what it gives, in another order. With square dims there are ``2 r d^1.5``
    parameters and as many multiply-adds per row. Bond 1 is a Monarch matrix. Source: arXiv 2406.06248.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        bond: rank ``r`` of each tile, at most ``min(o_2, i_2)``.
        in_dims: ``(i_1, i_2)``, whose product is ``in_features``; by default as equal as possible.
        out_dims: ``(o_1, o_2)``, whose product is ``out_features``; by default as equal as possible.
        bias: whether the layer has a bias.
        device: device of the parameters.
        dtype: element type of the parameters.

    Attributes:
        first: ``(i_1, o_1 r, i_2)``, blocks of the factor that is applied first.
        second: ``(o_1, o_2, i_1 r)``, blocks of the other one.

    Raises:
        ArgumentError: sizes that are not positive integers.
        SpecError: dims that do not multiply to the sizes, or a bond above ``min(o_2, i_2)``.

    Example:
        >>> layer = BlockTrainLinear(64, 256, bond=2, bias=False)
        >>> layer.in_dims, layer.out_dims, layer.macs(), layer(torch.zeros(2, 5, 64)).shape
        ((8, 8), (16, 16), 6144, torch.Size([2, 5, 256]))
    """

    kind = "block_train"
    Entry = BlockTrainEntry
    first: nn.Parameter
    second: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bond: int = 1,
        *,
        in_dims: tuple[int, int] | None = None,
        out_dims: tuple[int, int] | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for label, size in (("in_features", in_features), ("out_features", out_features), ("bond", bond)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{label} must be a positive integer, got {size!r}")
        self.in_dims = _dims("in", in_features, in_dims)
        self.out_dims = _dims("out", out_features, out_dims)
        if bond > min(self.in_dims[1], self.out_dims[1]):
            raise SpecError(
                f"bond {bond} exceeds the smaller side of the {self.out_dims[1]}x{self.in_dims[1]} tiles; give at most "
                f"{min(self.in_dims[1], self.out_dims[1])}, or other dims"
            )
        self.in_features, self.out_features, self.bond = in_features, out_features, bond
        (i_1, i_2), (o_1, o_2) = self.in_dims, self.out_dims
        self.first = nn.Parameter(torch.empty(i_1, o_1 * bond, i_2, device=device, dtype=dtype))
        self.second = nn.Parameter(torch.empty(o_1, o_2, i_1 * bond, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters, each factor by its fan-in; the weight has the deviation of ``nn.Linear``."""
        if self.first.is_meta:
            return
        nn.init.normal_(self.first, std=1 / math.sqrt(self.in_dims[1]))
        nn.init.normal_(self.second, std=1 / math.sqrt(3 * self.second.shape[2]))
        uniform_bias_(self.bias, self.in_features)

    @classmethod
    def from_factors(cls, first: Tensor, second: Tensor, bias: Tensor | None = None) -> BlockTrainLinear:
        """A layer with copies of its factors, and of a bias.

        Args:
            first: ``(i_1, o_1 r, i_2)``.
            second: ``(o_1, o_2, i_1 r)``.
            bias: ``(o_1 o_2,)``, or None.

        Raises:
            SpecError: the shapes do not fit together.
        """
        (i_1, columns, i_2), (o_1, o_2, rows) = first.shape, second.shape
        bond = columns // o_1
        if columns != o_1 * bond or rows != i_1 * bond or (bias is not None and tuple(bias.shape) != (o_1 * o_2,)):
            raise SpecError(
                f"factors {tuple(first.shape)} and {tuple(second.shape)} are no block tensor train; expected "
                "(i_1, o_1 r, i_2) and (o_1, o_2, i_1 r), and a bias (o_1 o_2,)"
            )
        with torch.device("meta"):
            layer = cls(
                i_1 * i_2,
                o_1 * o_2,
                bond,
                in_dims=(i_1, i_2),
                out_dims=(o_1, o_2),
                bias=bias is not None,
                dtype=first.dtype,
            )
        layer = layer.to_empty(device=first.device)
        with torch.no_grad():
            layer.first.copy_(first)
            layer.second.copy_(second)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        (i_1, i_2), (o_1, o_2) = self.in_dims, self.out_dims
        first = self.first.view(i_1, o_1, self.bond, i_2)
        second = self.second.view(o_1, o_2, i_1, self.bond)
        return torch.einsum("xyis,ixsj->xyij", second, first).reshape(self.out_features, self.in_features)

    def compact(self, x: Tensor) -> Tensor:
        """See :meth:`mpochain.nn.CompressedLayer.compact`."""
        (i_1, i_2), (o_1, _) = self.in_dims, self.out_dims
        rows = x.numel() // self.in_features
        parts = torch.bmm(x.reshape(rows, i_1, i_2).transpose(0, 1), self.first.transpose(1, 2))
        parts = parts.view(i_1, rows, o_1, self.bond).permute(2, 1, 0, 3).reshape(o_1, rows, i_1 * self.bond)
        y = torch.bmm(parts, self.second.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def macs(self) -> int:
        """Multiply-adds per input row."""
        return block_train_parameters(self.out_dims, self.in_dims, self.bond)

    def learning_rate_scales(self) -> dict[str, float]:
        """``in_features`` over the fan-in of each factor; see :func:`mpochain.surgery.learning_rate_scales`."""
        factors = {"first": self.first, "second": self.second}
        return {name: self.in_features / factor.shape[2] for name, factor in factors.items()}

    def entry(self) -> BlockTrainEntry:
        """The dims, the bond, and whether the layer has a bias."""
        return BlockTrainEntry(
            out_dims=list(self.out_dims), in_dims=list(self.in_dims), bond=self.bond, bias=self.bias is not None
        )

    @classmethod
    def from_entry(cls, entry: BlockTrainEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        (i_1, i_2), (o_1, o_2) = entry.in_dims, entry.out_dims
        out, in_ = entry.shape
        with torch.device("meta"):
            return cls(in_, out, entry.bond, in_dims=(i_1, i_2), out_dims=(o_1, o_2), bias=entry.bias)

    def form(self) -> str:
        """The dims and the bond, in words."""
        (i_1, i_2), (o_1, o_2) = self.in_dims, self.out_dims
        return f"block train ({o_1},{o_2})|({i_1},{i_2}) bond {self.bond}"

    def extra_repr(self) -> str:
        """Features, dims, bond and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, {self.form()}, bias={self.bias is not None}"


def block_train_dims(size: int) -> tuple[int, int]:
    """Number of parts and size of each part of a side, as equal as possible, the parts not larger.

    Example:
        >>> block_train_dims(576), block_train_dims(1536), block_train_dims(13)
        ((24, 24), (32, 48), (1, 13))
    """
    parts, part = shapes.balanced(size, 2)
    return min(parts, part), max(parts, part)


def block_train_parameters(out_dims: tuple[int, int], in_dims: tuple[int, int], bond: int) -> int:
    """Numbers of both factors, which are multiply-adds per row too.

    Example:
        >>> block_train_parameters((24, 24), (24, 24), 3) == 2 * 3 * 576**1.5
        True
    """
    (i_1, i_2), (o_1, o_2) = in_dims, out_dims
    return bond * (o_1 * i_1 * i_2 + i_1 * o_1 * o_2)


def _dims(side: str, size: int, dims: Any) -> tuple[int, int]:
    if dims is None:
        return block_train_dims(size)
    pair = tuple(dims)
    if len(pair) != 2 or any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in pair):
        raise SpecError(f"{side}_dims must be two positive integers, got {dims!r}")
    if pair[0] * pair[1] != size:
        raise SpecError(f"{side}_dims {pair} multiply to {pair[0] * pair[1]}, and {side}_features is {size}")
    return pair[0], pair[1]
