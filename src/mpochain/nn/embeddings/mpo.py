"""Embedding whose table is a chain (TT embedding), or a short sum of chains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, DTypeError
from mpochain.execution.autocast import without_autocast
from mpochain.factorization import decompose
from mpochain.nn.dense import dense_table
from mpochain.nn.embeddings.rows import Maker, RowEmbedding
from mpochain.nn.entry import LayerEntry, Padding
from mpochain.nn.index import Index
from mpochain.nn.linear import ChainsEntry, MPOLinear
from mpochain.nn.ordering import reordered
from mpochain.nn.permuted import PermutedEntry, PermutedLinear
from mpochain.spec import ChainSpec

__all__ = ["EmbeddingEntry", "MPOEmbedding"]


class EmbeddingEntry(LayerEntry):
    """Entry of an :class:`MPOEmbedding`."""

    kind: Literal["embedding"] = "embedding"
    padding: Padding
    table: Annotated[ChainsEntry | PermutedEntry, Field(discriminator="kind")]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the table."""
        return self.table.shape


class MPOEmbedding(RowEmbedding):
    """A table ``W (num_embeddings, embedding_dim)`` stored as cores: ``(...)`` to ``(..., embedding_dim)``.

    A row is the product of one slice of each core, see :class:`mpochain.nn.RowEmbedding`. A vocabulary whose size has
    no good factors is padded, see :class:`mpochain.ChainSpec`. Source: TT embeddings, Khrulkov et al., arXiv
    1901.10787.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        max_bond: largest bond; clipped to the attainable maximum.
        sites: number of sites of the default dims, 2 if not given.
        out_dims: rows of each site, instead of the default.
        in_dims: columns of each site, instead of the default.
        spec: the complete spec, instead of dims and ``max_bond``.
        terms: several specs; the table is the sum of their chains.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.
        device: device of the parameters.
        dtype: element type of the parameters.

    Raises:
        SpecError: dims that do not multiply to the sizes, or no bond.
        ArgumentError: contradictory arguments, or a ``padding_idx`` outside of the table.

    Example:
        >>> embedding = MPOEmbedding(50257, 768, max_bond=16)
        >>> sum(parameter.numel() for parameter in embedding.parameters()), embedding(torch.tensor([[0, 7, 7]])).shape
        (..., torch.Size([1, 3, 768]))
    """

    kind = "embedding"
    Entry = EmbeddingEntry

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_bond: int | None = None,
        *,
        sites: int | None = None,
        out_dims: Iterable[int] | None = None,
        in_dims: Iterable[int] | None = None,
        spec: ChainSpec | None = None,
        terms: Sequence[ChainSpec] | None = None,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._hold(
            MPOLinear(
                embedding_dim,
                num_embeddings,
                max_bond,
                sites=sites,
                out_dims=out_dims,
                in_dims=in_dims,
                spec=spec,
                terms=terms,
                bias=False,
                device=device,
                dtype=dtype,
            ),
            padding_idx,
        )
        self.reset_parameters()

    def _hold(self, table: MPOLinear | PermutedLinear, padding_idx: int | None) -> None:
        super().__init__(table.out_features, table.in_features, padding_idx)
        self.table = table

    @classmethod
    def of(cls, table: MPOLinear | PermutedLinear, padding_idx: int | None = None) -> Self:
        """An embedding whose table is the weight of a layer, one row per output feature of the layer.

        Args:
            table: a layer of chains without bias, permuted or not; it becomes a submodule and is not copied.
            padding_idx: see :class:`MPOEmbedding`.

        Raises:
            DTypeError: another type of layer.
            ArgumentError: a layer with a bias, or a ``padding_idx`` outside of the table.

        Example:
            >>> table = MPOLinear(6, 10, max_bond=2, bias=False)
            >>> torch.equal(MPOEmbedding.of(table).weight, table.weight)
            True
        """
        if not isinstance(table, MPOLinear | PermutedLinear):
            raise DTypeError(f"the table must be an MPOLinear or PermutedLinear, got {type(table).__name__}")
        if table.bias is not None:
            raise ArgumentError("the table of an embedding must have no bias; build the layer with bias=False")
        embedding = cls.__new__(cls)
        embedding._hold(table, padding_idx)
        return embedding

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, spec: ChainSpec, *, cutoff: float | None = None, name: str = "the table"
    ) -> Self:
        """Decompose the table of a dense embedding into a chain, by TT-SVD.

        Args:
            embedding: the dense embedding; not changed, and shares no memory with the result.
            spec: spec of the chain.
            cutoff: allowed relative Frobenius error of the table, in ``[0, 1)``.
            name: name of the table in errors.

        Raises:
            DTypeError: another module, or an embedding with ``max_norm=``, ``scale_grad_by_freq=`` or ``sparse=``.
            SpecError: a spec of another shape.
            NonFiniteError: NaN or infinite entries.

        Example:
            >>> dense = nn.Embedding(12, 8)
            >>> embedding = MPOEmbedding.from_embedding(dense, ChainSpec((3, 4), (2, 4)))  # without bonds: lossless
            >>> torch.allclose(embedding(torch.tensor([5])), dense(torch.tensor([5])), atol=1e-5)
            True
        """
        table = dense_table(embedding)
        chain = MPOLinear.from_chains(decompose(table.detach(), spec, cutoff=cutoff, name=name))
        layer = cls.of(chain.requires_grad_(table.requires_grad), embedding.padding_idx)
        return layer.replacing(embedding).train(embedding.training)

    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """See :meth:`mpochain.nn.RowEmbedding.reset_parameters`."""
        self._chains().reset_parameters(weight_std)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (num_embeddings, embedding_dim)``, differentiable; built at every access."""
        return self.table.weight

    @property
    def cores(self) -> tuple[tuple[Tensor, ...], ...]:
        """The cores of each term, ``(r_left, rows, columns, r_right)``."""
        return self._chains().cores

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        return {f"table.{name}": index for name, index in self.table.indices().items()}

    def entry(self) -> EmbeddingEntry:
        """The entry of the table, and the padding row."""
        return EmbeddingEntry(padding=self.padding_idx, table=self.table.entry())

    @classmethod
    def from_entry(cls, entry: EmbeddingEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        table = entry.table
        layer = PermutedLinear.from_entry(table) if isinstance(table, PermutedEntry) else MPOLinear.from_entry(table)
        return cls.of(layer, entry.padding)

    def form(self) -> str:
        """The form of the table."""
        return self.table.form()

    def learning_rate_scales(self) -> dict[str, float]:
        """``1 / r_k`` for the core of site ``k``: a look-up sums only over its right bond ``r_k``."""
        return {name: 1 / parameter.shape[3] for name, parameter in self.named_parameters() if parameter.ndim == 4}

    def macs(self) -> int:
        """Multiply-adds per row."""
        total = 0
        for spec in self._chains().specs:
            columns = 1
            for site, (left, _, in_dim, right) in enumerate(spec.core_shapes):
                columns *= in_dim
                total += columns * left * right if site else 0
        return total

    def scratch(self) -> int:
        """See :meth:`mpochain.nn.RowEmbedding.scratch`."""
        most = 0
        for spec in self._chains().specs:
            columns = 1
            for site, (left, rows, in_dim, right) in enumerate(spec.core_shapes):
                # The partial row and the slice of this core, if the core has several; and their product, unless it is
                # written straight into the output.
                slices = left * in_dim * right if rows > 1 or not site else 0
                product = columns * in_dim * right if site + 1 < spec.sites or not self._direct() else 0
                most = max(most, columns * left + slices + product)
                columns *= in_dim
        return most

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        # A tied head is a layer of its own that shares these cores.
        self.table.set_execution(cache=cache, autotune=autotune)
        super()._set_execution(cache, autotune)

    def maker(self, ids: Tensor) -> Maker:
        """Multiply slices of the cores, see :meth:`mpochain.nn.RowEmbedding.maker`."""
        table, chains = self.table, self._chains()
        # nn.Embedding returns its own dtype even under autocast, and residual sums start from it.
        with without_autocast(chains.cores[0][0]):
            terms = [[_slices(core) for core in cores] for cores in chains.cores]
        direct = self._direct()
        place = table.place if isinstance(table, PermutedLinear) else None
        columns = table.columns if isinstance(table, PermutedLinear) else None
        back = None if columns is None else torch.argsort(columns)
        ids = ids if place is None else place.index_select(0, ids).long()
        digits = [_digits(ids, spec.out_dims) for spec in chains.specs]

        def make(part: slice, out: Tensor | None) -> Tensor:
            total: Tensor | None = None
            with without_autocast(chains.cores[0][0]):
                for spec, slices, all_digits in zip(chains.specs, terms, digits, strict=True):
                    chosen = [site_digits[part] for site_digits in all_digits]
                    rows = _row_products(chosen, spec, slices, out if direct else None)[:, : spec.in_features]
                    total = rows if total is None else total + rows
            assert total is not None
            if back is not None:
                total = reordered(total, back)
            if out is None or direct:
                return total
            return out.copy_(total)

        return make

    def _direct(self) -> bool:
        """True if the last product is the complete row: one chain, no padding of columns, no permutation."""
        specs = self._chains().specs
        return len(specs) == 1 and specs[0].padded_shape[1] == self.embedding_dim and self.table is self._chains()

    def _chains(self) -> MPOLinear:
        return self.table.inner if isinstance(self.table, PermutedLinear) else self.table


def _slices(core: Tensor) -> Tensor:
    """``(left, out, in, right)`` to ``(out, left in right)``."""
    left, out, in_, right = core.shape
    return core.transpose(0, 1).reshape(out, left * in_ * right)


def _digits(ids: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """For each core, the index ``(n,)`` of the slice that belongs to each row: digits of ``ids`` in mixed radix."""
    digits = []
    for dim in reversed(dims):
        digits.append(ids % dim)
        ids = ids // dim
    return digits[::-1]


def _row_products(digits: Sequence[Tensor], spec: ChainSpec, slices: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """Rows ``(n, i_1 .. i_k)``, from slice indices ``(n,)`` of each core: products of the slices, from the left."""
    count, columns = digits[0].shape[0], spec.in_dims[0]  # torch.export would take len() for a constant
    row = F.embedding(digits[0], slices[0])
    for site in range(1, spec.sites):
        left, rows, in_, right = spec.core_shapes[site]
        into = out.view(count, columns, in_) if out is not None and site + 1 == spec.sites else None
        if rows == 1:
            into = into.view(-1, in_) if into is not None else None
            row = torch.mm(row.reshape(-1, left), slices[site].view(left, in_ * right), out=into)
        else:
            factor = F.embedding(digits[site], slices[site]).view(count, left, in_ * right)
            row = torch.bmm(row.view(count, columns, left), factor, out=into)
        columns *= in_
        row = row.reshape(count, columns * right)
    if out is not None and row.data_ptr() != out.data_ptr():
        out.copy_(row)
    return row
