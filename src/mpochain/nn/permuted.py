"""A linear layer whose matrix is compressed in another order of its rows and columns."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mpochain.chain import MPOChain
from mpochain.decomposition import Split
from mpochain.errors import DTypeError, ShapeError, SpecError
from mpochain.nn.composed import ComposedLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.ordering import reordered

__all__ = ["PermutedLinear", "require_order"]


class PermutedLinear(ComposedLinear):
    """``y[rows] = inner(x[columns])``: a layer of chains between an order of its inputs and one of its outputs.

    Orders are index tensors, exact and no parameters; ``(..., in) -> (..., out)``. The form of a sum of Kronecker
    products after :func:`mpochain.decomposition.split_off` (TQCompressor, arXiv 2401.16367).

    Args:
        inner: without bias; it becomes a submodule and is not copied. Low rank takes any order itself, in the rows and
            columns of its factors.
        rows: ``(out,)``, where each output of ``inner`` belongs; None for the given order.
        columns: ``(in,)``, which input each input of ``inner`` is; None for the given order.
        bias: ``(out,)``, in the order of the outputs of the whole; copied.

    Raises:
        DTypeError: another type of layer.
        SpecError: orders that are not one, or of another size, or none at all; a bias within ``inner``.
        ShapeError: a bias that is not of ``(out,)``.

    Example:
        >>> inner = MPOLinear(4, 6, max_bond=2, bias=False)
        >>> layer = PermutedLinear(inner, rows=torch.tensor([5, 4, 3, 2, 1, 0]))
        >>> torch.equal(layer.weight[5], inner.weight[0]), layer(torch.zeros(2, 5, 4)).shape
        (True, torch.Size([2, 5, 6]))
    """

    place: Tensor | None
    columns: Tensor | None

    def __init__(
        self, inner: MPOLinear, *, rows: Tensor | None = None, columns: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        if not isinstance(inner, MPOLinear):
            raise DTypeError(f"PermutedLinear is made of an MPOLinear, got {type(inner).__name__}")
        super().__init__([inner])
        if rows is None and columns is None:
            raise SpecError("PermutedLinear needs rows=, columns= or both; use the layer itself for the given order")
        if inner.bias is not None:
            raise SpecError("the layer to be permuted must have no bias; give bias=, in the order of the outputs")
        for order, size, name in ((rows, self.out_features, "rows"), (columns, self.in_features, "columns")):
            if order is not None:
                require_order(order, size, name)
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeError(f"the bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        # Where each output is found among those of the inner layer.
        self.register_buffer("place", None if rows is None else torch.argsort(rows).to(torch.int32))
        self.register_buffer("columns", None if columns is None else columns.detach().to(torch.int32, copy=True))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    @classmethod
    def from_split(cls, split: Split, bias: Tensor | None = None) -> PermutedLinear:
        """The layer of what :func:`mpochain.decomposition.split_off` made of a torch tensor.

        Args:
            split: is copied.
            bias: in the order of the matrix.

        Raises:
            ShapeError: a bias that is not of ``(out_features,)``.

        Example:
            >>> from mpochain.decomposition import split_off
            >>> W = torch.randn(8, 12)
            >>> layer = PermutedLinear.from_split(split_off(W, [(2, 2)], terms=4), torch.ones(8))
            >>> torch.allclose(layer.weight.float(), W, atol=1e-5), layer.bias.sum()  # of full rank
            (True, tensor(8., grad_fn=<SumBackward0>))
        """
        orders = {"rows": split.rows, "columns": split.columns}
        # To keep the given order costs a look-up for nothing.
        changed = {name: order for name, order in orders.items() if (order != np.arange(len(order))).any()} or orders
        found = {name: torch.from_numpy(np.ascontiguousarray(order)) for name, order in changed.items()}
        inner = MPOLinear.from_chains(MPOChain(split.cores, split.spec))
        return cls(inner, **found, bias=bias).to(split.cores[0].device)

    @property
    def inner(self) -> MPOLinear:
        """The layer between both orders."""
        return cast("MPOLinear", self.parts[0])

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        weight = self.inner.weight
        if self.place is not None:
            weight = weight.index_select(0, self.place)
        return weight if self.columns is None else weight.index_select(1, torch.argsort(self.columns))

    @property
    def orders(self) -> dict[str, tuple[Tensor, int]]:
        """Each index tensor with the number of what it orders."""
        sizes = {"place": self.out_features, "columns": self.in_features}
        return {name: (order, sizes[name]) for name in sizes if (order := getattr(self, name)) is not None}

    def reset_parameters(self) -> None:
        """Draw new parameters; the orders stay."""
        super().reset_parameters()
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def compact(self, x: Tensor) -> Tensor:
        """The inner layer between both orders; see :meth:`ComposedLinear.compact`."""
        y: Tensor = self.inner(x if self.columns is None else reordered(x, self.columns))
        y = y if self.place is None else reordered(y, self.place)
        # Under autocast a bias of a wider type would widen the output, which it does not do in nn.Linear.
        return y if self.bias is None else y + self.bias.to(y.dtype)


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
