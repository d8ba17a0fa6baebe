"""Base class of embeddings that store no table and compute rows at look-up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, DTypeError
from mpochain.execution.autocast import without_autocast
from mpochain.execution.kept import keepable
from mpochain.execution.tracing import is_traced
from mpochain.nn.dense_form import in_the_state_of
from mpochain.nn.layer import CompressedLayer

__all__ = ["Maker", "RowEmbedding"]

# Smallest number of tokens for which repeated tokens are searched, and the largest share of distinct tokens for which
# computing only these pays.
_MANY, _DISTINCT = 64, 0.75

# Rows of the table per token from which repeated tokens are found by sorting rather than with a table of all rows.
_SPARSE = 16

# Largest number of scratch elements of a tile without gradients: 3/4 MiB of float32, which stays in cache.
_SCRATCH = 3 << 16

# Computes the rows ``(n, embedding_dim)`` of a slice of the tokens; with a tensor ``out``, in place and without
# gradients.
Maker = Callable[[slice, Tensor | None], Tensor]


class RowEmbedding(CompressedLayer, ABC):
    """A table ``W (num_embeddings, embedding_dim)`` whose rows are computed: ``(...)`` to ``(..., embedding_dim)``.

    A subclass defines the computation in :meth:`maker`. A look-up never builds the table. In a batch of at least 64
    tokens of which a quarter or more are repeated, each distinct row is computed once. Smaller batches, function
    transforms and compiled graphs compute every row, since finding repeated tokens would cost more than it saves.
    Without gradients, rows are computed in tiles that take less than 1 MiB of scratch memory.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.

    Raises:
        ArgumentError: a size below 1, or a ``padding_idx`` outside of the table.
    """

    looks_up = True

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ArgumentError(f"a table needs at least one row and column, got {num_embeddings}x{embedding_dim}")
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(f"padding_idx must be one of the {num_embeddings} rows, got {padding_idx}")
            padding_idx %= num_embeddings
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.in_features, self.out_features = embedding_dim, num_embeddings
        self.padding_idx = padding_idx

    @abstractmethod
    def maker(self, ids: Tensor) -> Maker:
        """A function that computes rows of the tokens ``(n,)``, int64 and within the table, slice by slice.

        Work that all slices share is done here, once.
        """

    @abstractmethod
    def scratch(self) -> int:
        """Number of scratch elements per row, besides the row itself."""

    @abstractmethod
    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """Draw new parameters.

        Args:
            weight_std: standard deviation of the entries of the table; by default 1, as in ``nn.Embedding``.
        """

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``(n, embedding_dim)`` of tokens ``(n,)``, int64 and within the table; differentiable."""
        return self.maker(ids)(slice(None), None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (num_embeddings, embedding_dim)``, differentiable; built at every access."""
        ids = torch.arange(self.num_embeddings, device=self.device)
        in_tiles = _plain(ids, list(self.parameters())) and not self._records_gradients(ids)
        return self._in_tiles(ids) if in_tiles else self.rows(ids)

    @property
    def bias(self) -> None:  # type: ignore[override]  # read only: no embedding has one
        """None: embeddings have no bias."""
        return

    def to_embedding(self) -> nn.Embedding:
        """The ``torch.nn.Embedding`` with the same function, sharing no memory."""
        # In the table's own dtype even under autocast.
        with torch.inference_mode(False), torch.no_grad(), without_autocast(self._stored()):
            table = self.weight.clone()
            embedding = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=self.padding_idx)
            return in_the_state_of(self, embedding)

    def _default_dense(self) -> nn.Embedding:
        return self.to_embedding()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Embedding, which callers may use
        """``(...)`` integers to ``(..., embedding_dim)``; called as ``layer(ids)`` or ``layer(input=ids)``.

        Raises:
            DTypeError: indices that are not integers.
            IndexError: an index that is not a row of the table.
        """
        return super().forward(input)

    def compact(self, ids: Tensor) -> Tensor:
        """Rows ``(..., embedding_dim)`` of tokens ``(...)``; each distinct row is computed once if that is faster."""
        flat = ids.reshape(-1).long()
        self._require_rows(flat)
        parameters = list(self.parameters())
        if not _plain(flat, parameters) or len(flat) < _MANY:
            rows = self.rows(flat)
        elif self._records_gradients(ids):
            distinct, places = self._distinct(flat)
            rows = self.rows(distinct)
            rows = rows if places is None else F.embedding(places, rows)
        else:
            rows = self._in_tiles(flat)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((flat == self.padding_idx)[:, None], rows.detach(), rows)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _require_input(self, ids: Tensor) -> None:
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise DTypeError(f"{type(self).__name__} takes integers, got {ids.dtype}")

    def _kept_from(self) -> Sequence[Tensor]:
        return list(self.parameters())

    def _to_keep(self) -> Tensor:
        return self.weight  # rows of it are looked up

    def _run_kept(self, ids: Tensor, kept: Tensor) -> Tensor:
        return F.embedding(ids.long(), kept)

    def extra_repr(self) -> str:
        """Sizes, for ``print(embedding)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"

    def _require_rows(self, ids: Tensor) -> None:
        """Raise IndexError for tokens outside of the table: a padded chain would return rows for them."""
        if is_traced() or not len(ids):
            return
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(f"the table has rows 0 to {self.num_embeddings - 1}, got {low if low < 0 else high}")

    def _in_tiles(self, ids: Tensor) -> Tensor:
        """Rows ``(n, embedding_dim)`` of tokens ``(n,)``, without gradients, in tiles that fit in cache."""
        rows = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype, device=self.device)
        distinct, places = self._distinct(ids)
        make, count, tile = self.maker(distinct), len(distinct), max(_SCRATCH // self.scratch(), 1)
        for start in range(0, count, tile):
            part = slice(start, min(start + tile, count))
            make(part, rows[part])
        if places is not None:
            torch.index_select(rows[:count], 0, places[count:], out=rows[count:])
            # From the end: a distinct row lies at or before the first occurrence of its token, so no row is overwritten
            # while it is still needed.
            tile = max(_SCRATCH // self.embedding_dim, 1)
            for stop in range(count, 0, -tile):
                part = slice(max(stop - tile, 0), stop)
                rows[part] = rows.index_select(0, places[part])
        return rows

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Distinct tokens in the order of their first occurrence, and the position of every token among them.

        If few tokens are repeated, all tokens and None.
        """
        numbers = torch.arange(len(ids), device=ids.device)
        # Uses a table of all rows, or sorts the tokens if the table would be much larger than the batch.
        count, at = self.num_embeddings, ids
        if count > _SPARSE * len(ids):
            tokens, at = torch.unique(ids, return_inverse=True)
            count = len(tokens)
        first = torch.full((count,), len(ids), device=ids.device)
        first = first.scatter_reduce_(0, at, numbers, "amin").index_select(0, at)
        new = first == numbers
        so_far = new.cumsum(0)
        if int(so_far[-1]) > _DISTINCT * len(ids):
            return ids, None
        return ids[new], (so_far - 1).index_select(0, first)


def _plain(ids: Tensor, parameters: list[nn.Parameter]) -> bool:
    """True if rows may be computed in place, and only once per distinct token.

    False in a recorded graph, where shapes would depend on the tokens, and for dual and batched tensors.
    """
    return not is_traced() and keepable(ids, parameters)
