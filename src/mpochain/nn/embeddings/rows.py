"""Base class of embeddings whose table is not held: look-ups compute the rows that a batch asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import ArgumentError, DTypeError
from mpochain.execution.autocast import without_autocast
from mpochain.execution.kept import keepable
from mpochain.nn.layer import CompressedLayer

__all__ = ["Maker", "RowEmbedding"]

# Tokens from which repeated ones are looked for, and the share of distinct ones above which that gains nothing.
_MANY, _DISTINCT = 64, 0.75

# Rows of the table for each token from which tokens are sorted to find out.
_SPARSE = 16

# Elements that making rows may take beside them, without gradients: 3/4 MiB of float32, which stays in cache.
_SCRATCH = 3 << 16

# Computes the rows ``(n, embedding_dim)`` of a slice of the tokens; into ``out`` if it is a tensor, without gradients.
Maker = Callable[[slice, Tensor | None], Tensor]


class RowEmbedding(CompressedLayer, ABC):
    """A table ``W (num_embeddings, embedding_dim)`` whose rows are computed: ``(...)`` to ``(..., embedding_dim)``.

    A subclass defines how, in :meth:`maker`. The table is never built for a look-up. In a batch of 64 tokens or more of
    which a quarter are repeated, a repeated row is computed once; in smaller batches, and within a transform or a
    compiled graph, finding out would cost more than it saves. Without gradients rows are computed in tiles that take
    less than a MiB.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.

    Raises:
        ArgumentError: no rows or columns, or a ``padding_idx`` outside of the table.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ArgumentError(f"a table has rows and columns, got {num_embeddings}x{embedding_dim}")
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(f"padding_idx must be a row of the {num_embeddings}, got {padding_idx}")
            padding_idx %= num_embeddings
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.in_features, self.out_features = embedding_dim, num_embeddings
        self.padding_idx = padding_idx

    @abstractmethod
    def maker(self, ids: Tensor) -> Maker:
        """What makes rows of tokens ``(n,)``, int64 and within the table; what all need is done before."""

    @abstractmethod
    def scratch(self) -> int:
        """Elements that making one row takes beside it."""

    @abstractmethod
    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """Draw new parameters.

        Args:
            weight_std: standard deviation of the entries of the table; by default that of ``nn.Embedding``.
        """

    def rows(self, ids: Tensor) -> Tensor:
        """``(n,)`` tokens, int64 and within the table, to ``(n, embedding_dim)``, differentiable."""
        return self.maker(ids)(slice(None), None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (num_embeddings, embedding_dim)``, differentiable; built at every access."""
        ids = torch.arange(self.num_embeddings, device=self.device)
        in_tiles = _plain(ids, list(self.parameters())) and not self._records_gradients(ids)
        return self._in_tiles(ids) if in_tiles else self.rows(ids)

    @property
    def bias(self) -> None:  # type: ignore[override]  # read only: no embedding has one
        """None, as in every embedding."""
        return

    def to_embedding(self) -> nn.Embedding:
        """The dense embedding with the same function, sharing no memory."""
        # In the table's own type, also where autocast is on.
        with torch.no_grad(), without_autocast(self._stored()):
            table = self.weight.clone()
        return nn.Embedding.from_pretrained(table, freeze=False, padding_idx=self.padding_idx).train(self.training)

    def to_dense(self) -> nn.Embedding:
        """The dense embedding with the same function, sharing no memory."""
        return self.to_embedding()

    def forward(self, ids: Tensor) -> Tensor:
        """``(...)`` integers to ``(..., embedding_dim)``.

        Raises:
            DTypeError: indices that are not integers.
            IndexError: an index that is not a row of the table.
        """
        return super().forward(ids)

    def compact(self, ids: Tensor) -> Tensor:
        """The rows of a batch of tokens, each distinct one computed once where that pays."""
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

    def _run_kept(self, ids: Tensor, kept: Tensor) -> Tensor:
        return F.embedding(ids.long(), kept)

    def extra_repr(self) -> str:
        """Sizes, for ``print(embedding)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"

    def _require_rows(self, ids: Tensor) -> None:
        """Refuse indices outside of the table; a padded chain would have rows for them."""
        if _traced() or not len(ids):
            return
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(f"the table has rows 0 to {self.num_embeddings - 1}, got {low if low < 0 else high}")

    def _in_tiles(self, ids: Tensor) -> Tensor:
        """``(n,)`` to ``(n, embedding_dim)`` without gradients, as many rows at a time as fit a core's cache."""
        rows = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype, device=self.device)
        distinct, places = self._distinct(ids)
        make, count, tile = self.maker(distinct), len(distinct), max(_SCRATCH // self.scratch(), 1)
        for start in range(0, count, tile):
            part = slice(start, min(start + tile, count))
            make(part, rows[part])
        if places is not None:
            torch.index_select(rows[:count], 0, places[count:], out=rows[count:])
            # From the end: a row stands where its token comes first or before that, so none is written over too early.
            tile = max(_SCRATCH // self.embedding_dim, 1)
            for stop in range(count, 0, -tile):
                part = slice(max(stop - tile, 0), stop)
                rows[part] = rows.index_select(0, places[part])
        return rows

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The distinct tokens in the order of their first occurrence, and the position of every token among them.

        All tokens, and None, where hardly any is repeated.
        """
        numbers = torch.arange(len(ids), device=ids.device)
        # By a table of all tokens, or by sorting where that would be much larger than what is asked for.
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
    """Whether rows may be computed in place, and only the distinct ones.

    Not in a compiled graph, whose shapes would depend on the tokens, nor for dual or batched tensors.
    """
    return not _traced() and keepable(ids, parameters)


def _traced() -> bool:
    """Whether the numbers of a tensor are not to be asked for: of a graph, or of a batch that a transform hides."""
    return torch.compiler.is_compiling() or bool(torch._C._are_functorch_transforms_active())
