"""Embedding whose rows are sums of tensor products of unit vectors: word2ket, word2ketXS, MorphTE, SEE."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError
from mpochain.execution.autocast import without_autocast
from mpochain.nn.embeddings.rows import Maker, RowEmbedding
from mpochain.nn.embeddings.unit_choice import Source, count_of, dims_of, index_of
from mpochain.nn.entry import MOST_SITES, MatrixEntry, Padding, Size
from mpochain.nn.index import Index

__all__ = ["EntangledEmbedding", "EntangledEntry"]


class EntangledEntry(MatrixEntry):
    """Entry of an :class:`EntangledEmbedding`."""

    kind: Literal["entangled"] = "entangled"
    units: Source
    unit_count: Size
    ranks: Size
    dims: Annotated[list[Size], Field(min_length=2, max_length=MOST_SITES)]
    shared: bool
    coefficients: bool
    norm: bool
    padding: Padding


class EntangledEmbedding(RowEmbedding):
    """Rows ``v_w = sum_k c_wk (u_1k (x) .. (x) u_nk)``, cut to length: ``(...)`` to ``(..., embedding_dim)``.

    Each word ``w`` has ``n`` places, with one unit at each. ``u_jk`` is the rank ``k`` vector of the unit at place
    ``j``, from the table of that place. The members of the family differ in their units:

    - word2ketXS (arXiv 1911.04975): the digits of the word's row number, ``units="digits"``, one table per place;
      ``r n t q`` parameters with ``t = ceil(V^(1/n))`` and ``q = ceil(d^(1/n))``.
    - word2ket (the same source): a separate unit for each word and place, ``units="own"``; ``r n V q`` parameters.
    - MorphTE (arXiv 2210.15379): morphemes, from an index ``(V, n)``, one table for all places; with ``norm=True``.
    - SEE (arXiv 2412.12204): sememes, from an index too, with ``coefficients=True``: one number per word and rank. The
      paper's formula was not available; this is the natural member of the family.

    Words with the same units have the same row, unless ``coefficients`` distinguish them. The index of
    :class:`mpochain.units.Units` gives no two words the same units by default.

    Args:
        num_embeddings: number of words.
        embedding_dim: columns of the table.
        order: number of places per word; defaults to the number of columns of an index.
        ranks: number of products that are summed.
        units: ``"digits"``, ``"own"``, or an index ``(num_embeddings, order)`` of integers from 0 on, such as
            ``Units.of(...).index``.
        unit_count: units per table. For ``"digits"`` it is the base, by default the smallest possible; for an index it
            defaults to one more than the largest entry.
        dims: length of the vectors at each place, with a product of at least ``embedding_dim``; by default all
            ``ceil(embedding_dim^(1/order))``.
        shared: whether all places use the same table; by default True for an index, else False.
        coefficients: whether each word has a coefficient per rank, initially 1.
        norm: whether rows are normalised, with a scale and a shift per column, as in ``nn.LayerNorm``.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.
        device: device of the parameters.
        dtype: element type of the parameters.

    Raises:
        SpecError: dims whose product is too small.
        ArgumentError: an order below 2, fewer than one rank, a shared table with different dims, too few units, or an
            index of another shape or with units beyond the table.
        DTypeError: an index of another type than integers.

    Example:
        >>> xs = EntangledEmbedding(30_000, 256, order=4)
        >>> sum(parameter.numel() for parameter in xs.parameters()), xs(torch.tensor([[0, 7, 7]])).shape
        (224, torch.Size([1, 3, 256]))
        >>> morphemes = torch.tensor([[0, 1], [0, 2], [3, 1]])  # un-do, un-tie, re-do
        >>> EntangledEmbedding(3, 16, units=morphemes, ranks=2).table_0.shape
        torch.Size([4, 8])
    """

    kind = "entangled"
    Entry = EntangledEntry
    index: Tensor | None
    coefficients: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        order: int | None = None,
        ranks: int = 1,
        units: Tensor | NDArray[Any] | Literal["digits", "own"] = "digits",
        unit_count: int | None = None,
        dims: Iterable[int] | None = None,
        shared: bool | None = None,
        coefficients: bool = False,
        norm: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        index: Tensor | None = None
        if isinstance(units, Tensor | np.ndarray):
            # Not on the default device, which may hold no values.
            index = units if isinstance(units, Tensor) else torch.as_tensor(units, device="cpu")
        if index is None and units not in ("digits", "own"):
            raise ArgumentError(f"units must be 'digits', 'own' or an index (num_embeddings, order), got {units!r}")
        self.source: Source = "index" if index is not None else cast("Source", units)
        if index is not None:
            index = index_of(index, num_embeddings, order)
            order = index.shape[1]
        if order is None or order < 2:
            raise ArgumentError(f"order must be at least 2, got {order}")
        if ranks < 1:
            raise ArgumentError(f"ranks must be at least 1, got {ranks}")
        self.ranks = ranks
        self.dims = dims_of(embedding_dim, order, dims)
        self.shared = self.source == "index" if shared is None else shared
        if self.shared and len(set(self.dims)) > 1:
            raise ArgumentError(f"places with different dims {self.dims} cannot share a table; give shared=False")
        self.unit_count = count_of(self.source, num_embeddings, order, index, unit_count)

        def filled(rows: int, columns: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((rows, columns), value, device=device, dtype=dtype))

        for place, dim in enumerate(self.dims[:1] if self.shared else self.dims):
            self.register_parameter(f"table_{place}", filled(self.unit_count, ranks * dim, 0.0))
        self.register_buffer("index", index if index is None else index.to(self.tables[0].device))
        self.coefficients = filled(num_embeddings, ranks, 1.0) if coefficients else None
        self.scale = filled(1, embedding_dim, 1.0) if norm else None
        self.shift = filled(1, embedding_dim, 0.0) if norm else None
        self.reset_parameters()

    @property
    def order(self) -> int:
        """Number of places per word."""
        return len(self.dims)

    @property
    def tables(self) -> list[Tensor]:
        """The table ``(unit_count, ranks * dim)`` of each place; always the same one if it is shared."""
        return [getattr(self, f"table_{0 if self.shared else place}") for place in range(self.order)]

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        return {} if self.index is None else {"index": Index(self.index, self.unit_count, permutation=False)}

    def entry(self) -> EntangledEntry:
        """The sizes of the table, and the options of its units."""
        return EntangledEntry(
            out_features=self.num_embeddings,
            in_features=self.embedding_dim,
            units=self.source,
            unit_count=self.unit_count,
            ranks=self.ranks,
            dims=list(self.dims),
            shared=self.shared,
            coefficients=self.coefficients is not None,
            norm=self.scale is not None,
            padding=self.padding_idx,
        )

    @classmethod
    def from_entry(cls, entry: EntangledEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        words, order = entry.out_features, len(entry.dims)
        with torch.device("meta"):
            return cls(
                words,
                entry.in_features,
                order=order,
                ranks=entry.ranks,
                units=torch.empty(words, order, dtype=torch.int32) if entry.units == "index" else entry.units,
                unit_count=entry.unit_count,
                dims=entry.dims,
                shared=entry.shared,
                coefficients=entry.coefficients,
                norm=entry.norm,
                padding_idx=entry.padding,
            )

    def form(self) -> str:
        """The number and kind of units, the dims and the number of ranks."""
        dims = "x".join(map(str, self.dims))
        return f"{self.unit_count} units ({self.source}), products of {dims}, rank {self.ranks}"

    def units_of(self, ids: Tensor) -> list[Tensor]:
        """For each place, the units ``(n,)`` of words ``(n,)``.

        Example:
            >>> [units.tolist() for units in EntangledEmbedding(100, 4, order=2).units_of(torch.tensor([7, 42]))]
            [[0, 4], [7, 2]]
        """
        if self.index is not None:
            units = self.index.index_select(0, ids).long()
            return [units[:, place] for place in range(self.order)]
        if self.source == "own":
            return [ids] * self.order
        digits = []
        for _ in range(self.order):
            digits.append(ids % self.unit_count)
            ids = ids // self.unit_count
        return digits[::-1]

    def maker(self, ids: Tensor) -> Maker:
        """Multiply the vectors of each half of the places, then both halves, summed over ranks, in one matmul."""
        tables, half = self.tables, (self.order + 1) // 2
        direct, all_units = self._direct(), self.units_of(ids)

        def make(part: slice, out: Tensor | None) -> Tensor:
            # nn.Embedding returns its own dtype even under autocast, and residual sums start from it.
            with without_autocast(tables[0]):
                factors = [
                    F.embedding(units[part], table).view(-1, self.ranks, dim)
                    for units, table, dim in zip(all_units, tables, self.dims, strict=True)
                ]
                if self.coefficients is not None:
                    factors[0] = factors[0] * F.embedding(ids[part], self.coefficients)[:, :, None]
                left, right = _outer(factors[:half]), _outer(factors[half:])
                into = out.view(-1, left.shape[2], right.shape[2]) if out is not None and direct else None
                rows = torch.bmm(left.transpose(1, 2), right, out=into).flatten(1)[:, : self.embedding_dim]
                if self.scale is not None and self.shift is not None:
                    rows = F.layer_norm(rows, (self.embedding_dim,), self.scale[0], self.shift[0])
            return rows if out is None or direct else out.copy_(rows)

        return make

    def _direct(self) -> bool:
        """True if the last product is the complete row: no padding and no normalisation."""
        return self.scale is None and math.prod(self.dims) == self.embedding_dim

    def scratch(self) -> int:
        """See :meth:`mpochain.nn.RowEmbedding.scratch`."""
        half = (self.order + 1) // 2
        left, right = math.prod(self.dims[:half]), math.prod(self.dims[half:])
        beyond = 0 if self._direct() else left * right + self.embedding_dim
        # The vectors, the products of both halves, and the row before padding is cut or it is normalised.
        return self.ranks * (sum(self.dims) + left + right) + beyond

    def macs(self) -> int:
        """Multiply-adds per row."""
        half = (self.order + 1) // 2
        total = self.ranks * math.prod(self.dims)
        for dims in (self.dims[:half], self.dims[half:]):
            total += self.ranks * sum(math.prod(dims[:count]) for count in range(2, len(dims) + 1))
        return total + (self.ranks * self.dims[0] if self.coefficients is not None else 0)

    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """Draw normal vectors such that entries of the table have the standard deviation ``weight_std``.

        An entry is a sum of ``r`` products of ``n`` independent numbers, so these have the standard deviation
        ``(weight_std^2 / r)^(1/2n)``. With ``norm``, ``weight_std`` is the scale, applied to rows of deviation 1.
        """
        drawn = weight_std if self.scale is None else 1.0
        std = (drawn / math.sqrt(self.ranks)) ** (1 / self.order)
        with torch.no_grad():
            for table in dict.fromkeys(self.tables):
                table.normal_(0.0, std)
            for parameter, value in ((self.coefficients, 1.0), (self.scale, weight_std), (self.shift, 0.0)):
                if parameter is not None:
                    parameter.fill_(value)

    def extra_repr(self) -> str:
        """Sizes, for ``print(embedding)``."""
        dims = "x".join(map(str, self.dims))
        return f"{super().extra_repr()}, units={self.source} of {self.unit_count}, dims={dims}, ranks={self.ranks}"


def _outer(factors: list[Tensor]) -> Tensor:
    """Tensor product ``(n, r, q_1 q_2 ..)`` of factors ``(n, r, q_1), (n, r, q_2), ..``, for each rank."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[..., None] * factor[..., None, :]).flatten(2)
    return product
