"""Linear layer whose weight is a chain with permuted rows and columns."""

from __future__ import annotations

from typing import Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from mpochain.chain import MPOChain
from mpochain.decomposition import KroneckerFactors
from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.nn.composed import ComposedLinear
from mpochain.nn.entry import LayerEntry
from mpochain.nn.index import Index
from mpochain.nn.initialization import uniform_bias_
from mpochain.nn.linear import ChainsEntry, MPOLinear
from mpochain.nn.linear_chain import LinearChain
from mpochain.nn.ordering import permutation_buffer, reordered

__all__ = ["PermutedEntry", "PermutedLinear"]


class PermutedEntry(LayerEntry):
    """Entry of a :class:`PermutedLinear`."""

    kind: Literal["permuted"] = "permuted"
    rows: bool
    columns: bool
    bias: bool
    inner: ChainsEntry

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.inner.shape


class PermutedLinear(ComposedLinear):
    """``y[rows] = inner(x[columns])``: permute the inputs, apply chains, permute the outputs.

    ``(..., in) -> (..., out)``. The permutations are index buffers, not parameters. This is the form of the sums of
    Kronecker products from :func:`mpochain.decomposition.split_off` (TQCompressor, arXiv 2401.16367).

    Args:
        inner: a layer of chains without bias; it becomes a submodule and is not copied. Low-rank layers need no
            ``PermutedLinear``, since their factors absorb any permutation.
        rows: ``(out,)``: output ``k`` of ``inner`` is output ``rows[k]`` of the layer; None for the identity.
        columns: ``(in,)``: input ``k`` of ``inner`` is input ``columns[k]`` of the layer; None for the identity.
        bias: ``(out,)``, in the order of the layer's outputs; copied.

    Raises:
        DTypeError: another type of layer.
        ArgumentError: neither ``rows`` nor ``columns``, one that is no permutation or has another size, or an ``inner``
            with a bias.
        ShapeError: a bias whose shape is not ``(out,)``.

    Example:
        >>> inner = MPOLinear(4, 6, max_bond=2, bias=False)
        >>> layer = PermutedLinear(inner, rows=torch.tensor([5, 4, 3, 2, 1, 0]))
        >>> torch.equal(layer.weight[5], inner.weight[0]), layer(torch.zeros(2, 5, 4)).shape
        (True, torch.Size([2, 5, 6]))
    """

    kind = "permuted"
    Entry = PermutedEntry
    place: Tensor | None
    columns: Tensor | None

    def __init__(
        self, inner: MPOLinear, *, rows: Tensor | None = None, columns: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        if not isinstance(inner, MPOLinear):
            raise DTypeError(f"PermutedLinear permutes an MPOLinear, got {type(inner).__name__}")
        super().__init__([inner])
        if rows is None and columns is None:
            raise ArgumentError("PermutedLinear needs rows=, columns= or both; without either use the layer itself")
        if inner.bias is not None:
            raise ArgumentError("the layer to permute must have no bias; give bias=, in the order of the outputs")
        rows = None if rows is None else permutation_buffer(rows, self.out_features, "rows")
        columns = None if columns is None else permutation_buffer(columns, self.in_features, "columns")
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeError(f"the bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        # The inverse of rows: output j of the layer is output place[j] of the inner layer.
        self.register_buffer("place", None if rows is None else torch.argsort(rows).to(torch.int32))
        self.register_buffer("columns", columns)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    @classmethod
    def from_split(cls, split: KroneckerFactors, bias: Tensor | None = None) -> PermutedLinear:
        """A layer from the Kronecker factors that :func:`mpochain.decomposition.split_off` returns for a torch tensor.

        Args:
            split: the factors and orders; copied.
            bias: ``(out_features,)``, in the order of the original matrix's rows; copied.

        Raises:
            ShapeError: a bias whose shape is not ``(out_features,)``.

        Example:
            >>> from mpochain.decomposition import split_off
            >>> W = torch.randn(8, 12)
            >>> layer = PermutedLinear.from_split(split_off(W, [(2, 2)], terms=4), torch.ones(8))
            >>> torch.allclose(layer.weight.float(), W, atol=1e-5), layer.bias.sum()  # of full rank
            (True, tensor(8., grad_fn=<SumBackward0>))
        """
        orders = {"rows": split.rows, "columns": split.columns}
        # An identity order would cost a look-up for nothing.
        changed = {name: order for name, order in orders.items() if (order != np.arange(len(order))).any()} or orders
        permutations = {name: torch.from_numpy(np.ascontiguousarray(order)) for name, order in changed.items()}
        inner = MPOLinear.from_chains(MPOChain(split.cores, split.spec))
        return cls(inner, **permutations, bias=bias).to(split.cores[0].device)

    @property
    def inner(self) -> MPOLinear:
        """The layer between the two permutations."""
        return cast("MPOLinear", self.parts[0])

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        weight = self.inner.weight
        if self.place is not None:
            weight = weight.index_select(0, self.place)
        return weight if self.columns is None else weight.index_select(1, torch.argsort(self.columns))

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        buffers = {"place": (self.place, self.out_features), "columns": (self.columns, self.in_features)}
        own = {
            name: Index(values, size, permutation=True)
            for name, (values, size) in buffers.items()
            if values is not None
        }
        return own | super().indices()

    def entry(self) -> PermutedEntry:
        """The entry of the inner layer, and whether rows and columns are permuted."""
        return PermutedEntry(
            rows=self.place is not None,
            columns=self.columns is not None,
            bias=self.bias is not None,
            inner=self.inner.entry(),
        )

    @classmethod
    def from_entry(cls, entry: PermutedEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        if entry.inner.bias:
            raise ArgumentError("the inner layer of a permuted layer must have no bias")
        inner = MPOLinear.from_entry(entry.inner)
        with torch.device("meta"):
            rows, columns = (torch.empty(size, dtype=torch.int32) for size in inner.shape)
            return cls(
                inner,
                rows=rows if entry.rows else None,
                columns=columns if entry.columns else None,
                bias=torch.empty(inner.out_features) if entry.bias else None,
            )

    def form(self) -> str:
        """The form of the inner layer."""
        return f"{self.inner.form()}, permuted"

    def can_reorder(self) -> bool:
        """True: the layer, or one around it, looks features up."""
        return True

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:  # noqa: ARG002  # see the base class
        """See :meth:`mpochain.nn.CompressedLayer.as_linears`; a :class:`LinearChain` with copies of the cores."""
        terms = list(zip(self.inner.specs, self.inner.cores, strict=True))
        layer = LinearChain.from_cores(terms, self.bias, place=self.place, columns=self.columns)
        return layer.train(self.training)

    def reset_parameters(self) -> None:
        """Draw new parameters; the permutations stay."""
        super().reset_parameters()
        uniform_bias_(self.bias, self.in_features)

    def compact(self, x: Tensor) -> Tensor:
        """The layer's output, without the dense matrix; see :meth:`mpochain.nn.CompressedLayer.compact`."""
        y: Tensor = self.inner(x if self.columns is None else reordered(x, self.columns))
        y = y if self.place is None else reordered(y, self.place)
        # Under autocast a bias of a wider dtype would promote the output; nn.Linear does not.
        return y if self.bias is None else y + self.bias.to(y.dtype)
