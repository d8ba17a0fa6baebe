"""What embeddings have in common whose table is not held: how the rows that a batch asks for are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import DTypeError, SpecError
from mpochain.execute.kept import Kept
from mpochain.planning import Memory

__all__ = ["RowEmbedding"]

# Tokens from which repeated ones are looked for, and the share of distinct ones above which that gains nothing.
_MANY, _DISTINCT = 64, 0.75

# Elements that making rows may take beside them, without gradients: 1 MiB of float32, which stays in a core's cache.
_SCRATCH = 1 << 18


class RowEmbedding(nn.Module, ABC):
    """A table ``W (num_embeddings, embedding_dim)`` whose rows can be made: ``(...)`` to ``(..., embedding_dim)``.

    A subclass says how rows are made, in :meth:`rows`. The table is never built for a look-up, a row that a batch asks
    for several times is made once, and without gradients rows are made in tiles that take no more than a MiB.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.

    Raises:
        SpecError: no rows or columns, or a ``padding_idx`` outside of the table.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise SpecError(f"a table has rows and columns, got {num_embeddings}x{embedding_dim}")
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise SpecError(f"padding_idx must be a row of the {num_embeddings}, got {padding_idx}")
            padding_idx %= num_embeddings
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self._kept: Kept | None = None

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """``(n,)`` rows of the table, int64 and within it, to ``(n, embedding_dim)``."""

    @abstractmethod
    def scratch(self) -> int:
        """Elements that :meth:`rows` needs for one row."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds of one row."""

    @abstractmethod
    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """Draw new parameters.

        Args:
            weight_std: standard deviation of the entries of the table; by default that of ``nn.Embedding``.
        """

    @property
    def weight(self) -> Tensor:
        """The dense ``W (num_embeddings, embedding_dim)``, differentiable; built at every access."""
        ids = torch.arange(self.num_embeddings, device=self._parameter().device)
        return self.rows(ids) if self._learns() else self._in_tiles(ids)

    @property
    def in_features(self) -> int:
        """Columns of the table."""
        return self.embedding_dim

    @property
    def out_features(self) -> int:
        """Rows of the table."""
        return self.num_embeddings

    @property
    def bias(self) -> None:
        """None, as in every embedding."""
        return

    @property
    def orders(self) -> dict[str, tuple[Tensor, int]]:
        """Each index tensor that the rows are made by, with the number of what it chooses from."""
        return {}

    @property
    def memory(self) -> Memory:
        """How rows are found."""
        return "compact" if self._kept is None else "fast"

    def to_embedding(self) -> nn.Embedding:
        """The dense embedding with the same function, sharing no memory."""
        return nn.Embedding.from_pretrained(
            self.weight.detach().clone(), freeze=False, padding_idx=self.padding_idx
        ).train(self.training)

    def forward(self, ids: Tensor) -> Tensor:
        """``(...)`` integers to ``(..., embedding_dim)``.

        Raises:
            DTypeError: indices that are not integers.
            IndexError: one that is not a row of the table.
        """
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise DTypeError(f"{type(self).__name__} takes integers, got {ids.dtype}")
        learns = self._learns()
        if self._kept is not None and not learns:
            made = self._kept.get(ids, list(self.parameters()), lambda: self.weight)
            if made is not None:
                return F.embedding(ids.long(), made)
        flat = ids.reshape(-1).long()
        if torch.compiler.is_compiling() or len(flat) < _MANY:
            # How many are distinct would be a size that depends on the data.
            self._require_rows(flat)
            rows = self.rows(flat)
        elif learns:
            distinct, places = torch.unique(flat, return_inverse=True)
            self._require_rows(distinct)
            repeated = len(distinct) <= _DISTINCT * len(flat)
            rows = F.embedding(places, self.rows(distinct)) if repeated else self.rows(flat)
        else:
            self._require_rows(flat)
            rows = self._in_tiles(flat)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((flat == self.padding_idx)[:, None], rows.detach(), rows)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> Self:  # noqa: ARG002  # of layers
        """Choose how rows are found; fast execution keeps the dense table between calls without gradients.

        Raises:
            SpecError: an unknown ``memory``.
        """
        if memory not in ("compact", "fast"):
            raise SpecError(f"memory must be 'compact' or 'fast', got {memory!r}")
        self._kept = Kept() if memory == "fast" else None
        return self

    def extra_repr(self) -> str:
        """Sizes, for ``print(embedding)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"

    def _parameter(self) -> Tensor:
        return next(self.parameters())

    def _learns(self) -> bool:
        return torch.is_grad_enabled() and any(each.requires_grad for each in self.parameters())

    def _require_rows(self, ids: Tensor) -> None:
        """Refuse indices beside the table, of which padding has some."""
        if torch.compiler.is_compiling() or not len(ids):
            return
        low, high = (int(each) for each in ids.aminmax())
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(f"the table has rows 0 to {self.num_embeddings - 1}, got {low if low < 0 else high}")

    def _in_tiles(self, ids: Tensor) -> Tensor:
        """``(n,)`` to ``(n, embedding_dim)`` without gradients, so many rows at a time as fit a core's cache."""
        count, tile = len(ids), max(_SCRATCH // self.scratch(), 1)
        found: Tensor | None = None
        ordered, order = ids.sort()
        distinct = 1 + int((ordered[1:] != ordered[:-1]).sum())
        repeated = distinct <= _DISTINCT * count
        for start in range(0, count, tile):
            if repeated:
                # In order, equal ones are neighbours, so that a tile makes each once.
                some, places = torch.unique_consecutive(ordered[start : start + tile], return_inverse=True)
                made = self.rows(some).index_select(0, places)
            else:
                made = self.rows(ids[start : start + tile])
            if found is None:
                found = made.new_empty(count, self.embedding_dim)
            if repeated:
                found.index_copy_(0, order[start : start + tile], made)
            else:
                found[start : start + tile] = made
        return self.rows(ids) if found is None else found
