"""A linear layer whose matrix is compressed in another order of its rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.chain import MPOChain
from mpochain.decomposition import PermutedKronecker
from mpochain.errors import DTypeError, ShapeError, SpecError
from mpochain.execute.kept import Kept
from mpochain.nn.dense import linear_of
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.planning import Memory
from mpochain.spec import ChainSpec

__all__ = ["PermutedLinear", "require_order"]


class PermutedLinear(nn.Module):
    """``y[rows] = inner(x[columns])``: another layer, between an order of its inputs and one of its outputs.

    Orders are index tensors, exact and no parameters; ``(..., in) -> (..., out)``. The form of a sum of Kronecker
    products after :func:`mpochain.decomposition.permuted_kronecker` (TQCompressor, arXiv 2401.16367).

    Args:
        inner: the layer; it becomes a submodule and is not copied. Its bias is in the order of its own outputs.
        rows: ``(out,)``, where each output of ``inner`` belongs; None for the given order.
        columns: ``(in,)``, which input each input of ``inner`` is; None for the given order.

    Raises:
        DTypeError: another type of layer.
        SpecError: orders that are not one, or of another size, or none at all.

    Example:
        >>> inner = MPOLinear(4, 6, max_bond=2, bias=False)
        >>> layer = PermutedLinear(inner, rows=torch.tensor([5, 4, 3, 2, 1, 0]))
        >>> torch.equal(layer.weight[5], inner.weight[0]), layer(torch.zeros(2, 5, 4)).shape
        (True, torch.Size([2, 5, 6]))
    """

    place: Tensor | None
    columns: Tensor | None

    def __init__(
        self, inner: InterpolativeLinear | MPOLinear, *, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(inner, InterpolativeLinear | MPOLinear):
            raise DTypeError(f"only InterpolativeLinear and MPOLinear can be permuted, got {type(inner).__name__}")
        if rows is None and columns is None:
            raise SpecError("PermutedLinear needs rows=, columns= or both; use the layer itself for the given order")
        self.in_features, self.out_features = inner.in_features, inner.out_features
        for order, size, name in ((rows, self.out_features, "rows"), (columns, self.in_features, "columns")):
            if order is not None:
                require_order(order, size, name)
        self.inner = inner
        # Where each output is found among those of the inner layer.
        self.register_buffer("place", None if rows is None else torch.argsort(rows).to(torch.int32))
        self.register_buffer("columns", None if columns is None else columns.detach().to(torch.int32, copy=True))
        self._kept: Kept | None = None

    @classmethod
    def from_search(cls, found: PermutedKronecker, spec: ChainSpec, bias: Tensor | None = None) -> PermutedLinear:
        """The layer of a search on a torch tensor; a bias is given in the order of the matrix.

        Raises:
            ShapeError: a bias that is not of ``(out_features,)``.

        Example:
            >>> from mpochain.decomposition import permuted_kronecker
            >>> W, spec = torch.randn(8, 12), ChainSpec((4, 2), (6, 2), max_bond=4)
            >>> layer = PermutedLinear.from_search(permuted_kronecker(W, spec), spec, torch.ones(8))
            >>> torch.allclose(layer.weight.float(), W, atol=1e-5), layer.bias.sum()  # of full rank
            (True, tensor(8., grad_fn=<SumBackward0>))
        """
        rows = torch.from_numpy(np.ascontiguousarray(found.rows))
        columns = torch.from_numpy(np.ascontiguousarray(found.columns))
        if bias is not None and tuple(bias.shape) != (spec.out_features,):
            raise ShapeError(f"the bias must have shape ({spec.out_features},), got {tuple(bias.shape)}")
        inner = MPOLinear.from_chains(MPOChain(found.cores, spec), None if bias is None else bias[rows])
        return cls(inner, rows=rows, columns=columns).to(found.cores[0].device)

    @property
    def bias(self) -> Tensor | None:
        """In the order of the outputs; None if the inner layer has none."""
        bias = self._inner().bias
        return bias if bias is None or self.place is None else bias.index_select(0, self.place)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        weight = self._inner().weight
        if self.place is not None:
            weight = weight.index_select(0, self.place)
        return weight if self.columns is None else weight.index_select(1, torch.argsort(self.columns))

    @property
    def orders(self) -> dict[str, tuple[Tensor, int]]:
        """Each index tensor with the number of what it orders."""
        sizes = {"place": self.out_features, "columns": self.in_features}
        return {name: (order, sizes[name]) for name in sizes if (order := getattr(self, name)) is not None}

    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function, sharing no memory."""
        return linear_of(self.weight.detach(), self.bias, self.training)

    def macs(self) -> int:
        """Multiply-adds of one input row; to find a number in another place is none."""
        return self._inner().macs()

    def reset_parameters(self) -> None:
        """Draw new parameters of the inner layer."""
        self._inner().reset_parameters()

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
            made = self._kept.get(x, [each for each in self.parameters() if each.ndim > 1], lambda: self.weight)
            if made is not None:
                return F.linear(x, made, self.bias)
        y: Tensor = self.inner(x if self.columns is None else x.index_select(-1, self.columns))
        return y if self.place is None else y.index_select(-1, self.place)

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> PermutedLinear:
        """Choose how the layer is run; fast execution keeps one dense matrix in the given order.

        Raises:
            SpecError: an unknown ``memory``.
        """
        self._inner().set_execution(memory=memory, autotune=autotune)
        self._kept = Kept() if memory == "fast" else None
        return self

    def _learns(self, x: Tensor) -> bool:
        return x.requires_grad or any(each.requires_grad for each in self.parameters())

    def extra_repr(self) -> str:
        """Features and bias, for ``print(layer)``; the inner layer prints itself."""
        return f"{self.in_features} -> {self.out_features}, bias={self._inner().bias is not None}"

    def _inner(self) -> Any:
        return self.inner  # torch calls every submodule a Module or a Tensor


def require_order(order: Tensor, size: int, name: str) -> None:
    """Refuse indices that do not name each of ``size`` things once.

    Raises:
        SpecError: they do not.

    Example:
        >>> require_order(torch.tensor([1, 0]), 2, "rows")
    """
    if order.is_floating_point() or order.dtype == torch.bool or tuple(order.shape) != (size,):
        raise SpecError(f"{name} must be {size} indices, got {order.dtype} of shape {tuple(order.shape)}")
    if order.device.type != "meta" and not torch.equal(order.long().sort().values, torch.arange(size).to(order.device)):
        raise SpecError(f"{name} must hold each index from 0 to {size - 1} once")
