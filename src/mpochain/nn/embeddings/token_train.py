"""Embedding that stores every row as a separate tensor train (TensorGPT)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain import shapes
from mpochain.decomposition import core_std, equalised_rows, random_like
from mpochain.errors import NonFiniteError, SpecError
from mpochain.execution.autocast import without_autocast
from mpochain.linalg import svd
from mpochain.nn.dense import dense_table
from mpochain.nn.embeddings.rows import Maker, RowEmbedding
from mpochain.nn.entry import MOST_SITES, MatrixEntry, Padding, Size

__all__ = ["TokenTrainEmbedding", "TokenTrainEntry"]

# Number of rows that are decomposed at once, in float64.
_AT_ONCE = 4096

# Rows whose largest entry is within these powers of two keep their scale while they are decomposed.
_SAFE_EXPONENT = 30


class TokenTrainEntry(MatrixEntry):
    """Entry of a :class:`TokenTrainEmbedding`."""

    kind: Literal["token_train"] = "token_train"
    dims: Annotated[list[Size], Field(min_length=1, max_length=MOST_SITES)]
    max_bond: Size
    padding: Padding


class TokenTrainEmbedding(RowEmbedding):
    """Rows ``v_w = G_1 .. G_n``, with cores ``G_j (r_j-1, q_j, r_j)`` per word: ``(...)`` to ``(..., embedding_dim)``.

    Words share no parameters. A word has ``sum_j r_j-1 q_j r_j`` parameters, fewer than ``embedding_dim`` for small
    bonds. Source: TensorGPT, arXiv 2307.00526, which needs no training.

    Args:
        num_embeddings: number of words.
        embedding_dim: columns of the table.
        max_bond: largest bond; clipped to the attainable maximum.
        sites: number of sites of the default dims, 3 if not given.
        dims: one dim per site, instead of the default, with a product of at least ``embedding_dim``; longer rows are
            cut.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.
        device: device of the parameters.
        dtype: element type of the parameters.

    Raises:
        SpecError: dims whose product is too small, or a bond below 1.

    Example:
        >>> embedding = TokenTrainEmbedding(100, 64, max_bond=1)
        >>> embedding.dims, sum(parameter.numel() for parameter in embedding.parameters())
        ((4, 4, 4), 1200)
    """

    kind = "token_train"
    Entry = TokenTrainEntry

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_bond: int,
        *,
        sites: int | None = None,
        dims: Iterable[int] | None = None,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.dims = _dims_of(embedding_dim, sites, dims)
        self.bonds = _bonds_of(self.dims, max_bond)
        for site, (left, dim, right) in enumerate(self.core_shapes):
            core = torch.empty(num_embeddings, left * dim * right, device=device, dtype=dtype)
            self.register_parameter(f"core_{site}", nn.Parameter(core))
        self.reset_parameters()

    @property
    def core_shapes(self) -> list[tuple[int, int, int]]:
        """Core shape ``(r_j-1, q_j, r_j)`` of each site."""
        bonds = (1, *self.bonds, 1)
        return [(bonds[site], dim, bonds[site + 1]) for site, dim in enumerate(self.dims)]

    @property
    def cores(self) -> list[Tensor]:
        """The cores of each site, ``(num_embeddings, r_j-1 q_j r_j)``."""
        return [getattr(self, f"core_{site}") for site in range(len(self.dims))]

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, max_bond: int, *, sites: int | None = None, dims: Iterable[int] | None = None
    ) -> Self:
        """Decompose every row of a dense embedding by a separate TT-SVD.

        Args:
            embedding: the dense embedding; not changed, and shares no memory with the result.
            max_bond: see :class:`TokenTrainEmbedding`.
            sites: see :class:`TokenTrainEmbedding`.
            dims: see :class:`TokenTrainEmbedding`.

        Raises:
            DTypeError: another module, or an embedding with ``max_norm=``, ``scale_grad_by_freq=`` or ``sparse=``.
            NonFiniteError: NaN or infinite entries.

        Example:
            >>> dense = nn.Embedding(12, 8)
            >>> trains = TokenTrainEmbedding.from_embedding(dense, max_bond=4)  # full bonds of a 2x2x2 row: lossless
            >>> torch.allclose(trains(torch.tensor([5])), dense(torch.tensor([5])), atol=1e-5)
            True
        """
        table = dense_table(embedding)
        if not table.isfinite().all():
            raise NonFiniteError("the table has NaN or infinite entries; replace them before decomposing it")
        trains = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            max_bond,
            sites=sites,
            dims=dims,
            padding_idx=embedding.padding_idx,
            device=table.device,
            dtype=table.dtype,
        )
        with torch.no_grad():
            for start in range(0, len(table), _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                for core, values in zip(trains.cores, _trains(table[rows], trains.core_shapes), strict=True):
                    core[rows] = values
        return trains.requires_grad_(table.requires_grad).replacing(embedding).train(embedding.training)

    def entry(self) -> TokenTrainEntry:
        """The sizes of the table, the dims and the largest bond."""
        return TokenTrainEntry(
            out_features=self.num_embeddings,
            in_features=self.embedding_dim,
            dims=list(self.dims),
            max_bond=max(self.bonds, default=1),
            padding=self.padding_idx,
        )

    @classmethod
    def from_entry(cls, entry: TokenTrainEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        with torch.device("meta"):
            return cls(
                entry.out_features, entry.in_features, entry.max_bond, dims=entry.dims, padding_idx=entry.padding
            )

    def form(self) -> str:
        """The dims and bonds of each row's train."""
        return f"a train of {'x'.join(map(str, self.dims))} for each row, bonds {self.bonds}"

    def maker(self, ids: Tensor) -> Maker:
        """Multiply the cores of each row from the left."""
        cores, shapes_ = self.cores, self.core_shapes
        direct = self._direct()

        def make(part: slice, out: Tensor | None) -> Tensor:
            with without_autocast(cores[0]):
                rows = F.embedding(ids[part], cores[0])
                for site, (core, (left, dim, right)) in enumerate(zip(cores, shapes_, strict=True)):
                    if not site:
                        continue
                    columns = rows.shape[1] // left
                    factor = F.embedding(ids[part], core).view(-1, left, dim * right)
                    last = direct and site + 1 == len(cores)
                    into = out.view(-1, columns, dim) if out is not None and last else None
                    rows = torch.bmm(rows.view(-1, columns, left), factor, out=into).flatten(1)
            rows = rows[:, : self.embedding_dim]
            return rows if out is None or direct else out.copy_(rows)

        return make

    def _direct(self) -> bool:
        """True if the last product is the complete row, without padding."""
        return len(self.dims) > 1 and math.prod(self.dims) == self.embedding_dim

    def scratch(self) -> int:
        """See :meth:`mpochain.nn.RowEmbedding.scratch`."""
        columns, most = 1, 0
        for site, (left, dim, right) in enumerate(self.core_shapes):
            product = columns * dim * right if site + 1 < len(self.dims) or not self._direct() else 0
            most = max(most, columns * left + left * dim * right + product)
            columns *= dim
        return most

    def macs(self) -> int:
        """Multiply-adds per row."""
        columns, total = self.dims[0], 0
        for left, dim, right in self.core_shapes[1:]:
            total += columns * left * dim * right
            columns *= dim
        return total

    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """Draw normal cores such that entries of the table have the standard deviation ``weight_std``.

        See :func:`mpochain.decomposition.core_std`.
        """
        std = core_std(self.bonds, weight_std)
        with torch.no_grad():
            for core in self.cores:
                core.normal_(0.0, std)

    def extra_repr(self) -> str:
        """Sizes, for ``print(embedding)``."""
        return f"{super().extra_repr()}, dims={'x'.join(map(str, self.dims))}, bonds={self.bonds}"


def _dims_of(columns: int, sites: int | None, dims: Iterable[int] | None) -> tuple[int, ...]:
    if dims is None:
        return shapes.default_dims(columns, 3 if sites is None else sites)
    sizes = tuple(int(dim) for dim in dims)
    if sites not in (None, len(sizes)) or not sizes or min(sizes) < 1 or math.prod(sizes) < columns:
        raise SpecError(f"expected one dim per site with a product of at least {columns}, got {sizes}")
    return sizes


def _bonds_of(dims: tuple[int, ...], most: int) -> tuple[int, ...]:
    if most < 1:
        raise SpecError(f"max_bond must be at least 1, got {most}")
    return tuple(min(most, math.prod(dims[: site + 1]), math.prod(dims[site + 1 :])) for site in range(len(dims) - 1))


def _trains(rows: Tensor, core_shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """The cores ``(n, r_j-1 q_j r_j)`` of rows ``(n, d)`` by TT-SVD; the cores of a row have equal norms.

    A row of zeros gets random cores except for the last, which is zero, so that it can be trained.
    """
    length, count = math.prod(dim for _, dim, _ in core_shapes), len(rows)
    # Every row in a scale in which squares neither overflow nor underflow, by a power of two that its cores share.
    rows64 = rows.double()
    exponents = torch.frexp(rows64.abs().amax(1)).exponent
    exponents = torch.where(exponents.abs() <= _SAFE_EXPONENT, 0, exponents)
    rest = F.pad(_times_powers_of_two(rows64, -exponents), (0, length - rows.shape[1]))
    cores = []
    for left, dim, right in core_shapes[:-1]:
        U, S, Vh = svd(rest.reshape(count, left * dim, -1))
        cores.append(U[..., :right].reshape(count, -1))
        rest = S[:, :right, None] * Vh[:, :right]
    cores.append(rest.reshape(count, -1))
    # Cores of equal norm train at the same rate.
    parts = len(core_shapes)
    cores = [
        _times_powers_of_two(core, torch.div(exponents + site, parts, rounding_mode="floor"))
        for site, core in enumerate(equalised_rows(cores))
    ]
    zero = (rows == 0).all(1)
    if zero.any():
        # The size of cores of a row with entries of 1 / sqrt(d), as in a table with rows of norm 1.
        std = core_std([right for _, _, right in core_shapes[:-1]], 1 / math.sqrt(rows.shape[1]))
        for site, core in enumerate(cores[:-1]):
            core[zero] = random_like(core, std, site)[zero]
    return cores


def _times_powers_of_two(rows: Tensor, exponents: Tensor) -> Tensor:
    """Each row times a power of two of its own, in two steps, so that no factor leaves float64."""
    half = torch.div(exponents, 2, rounding_mode="floor")
    return torch.ldexp(torch.ldexp(rows, half[:, None]), (exponents - half)[:, None])
