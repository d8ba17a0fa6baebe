"""What embeddings have in common whose table is not held: how the rows that a batch asks for are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpochain.errors import DTypeError, SpecError
from mpochain.execution.kept import Kept, keepable
from mpochain.planning import Memory

__all__ = ["Maker", "RowEmbedding"]

# Tokens from which repeated ones are looked for, and the share of distinct ones above which that gains nothing.
_MANY, _DISTINCT = 64, 0.75

# Rows of the table for each token from which tokens are sorted to find out.
_SPARSE = 16

# Elements that making rows may take beside them, without gradients: 3/4 MiB of float32, which stays in cache.
_SCRATCH = 3 << 16

# Makes the rows ``(n, embedding_dim)`` of some of the tokens; in the place given, if one is, without gradients.
Maker = Callable[[slice, Tensor | None], Tensor]


class RowEmbedding(nn.Module, ABC):
    """A table ``W (num_embeddings, embedding_dim)`` whose rows can be made: ``(...)`` to ``(..., embedding_dim)``.

    A subclass says how rows are made, in :meth:`maker`. The table is never built for a look-up. Of 64 tokens or more of
    which a quarter are repeated, each row is made once; of fewer, and within a transform or a compiled graph, to find
    out would cost more than it saves. Without gradients rows are made in tiles that take less than a MiB.

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
    def maker(self, ids: Tensor) -> Maker:
        """What makes rows of tokens ``(n,)``, int64 and within the table; what all need is done before."""

    @abstractmethod
    def scratch(self) -> int:
        """Elements that making one row takes beside it."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds of one row."""

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
        ids = torch.arange(self.num_embeddings, device=self._parameter().device)
        parameters = list(self.parameters())
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in parameters)
        return self._in_tiles(ids) if _plain(ids, parameters) and not learns else self.rows(ids)

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
        parameters = list(self.parameters())
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in parameters)
        if self._kept is not None and not learns:
            made = self._kept.get(ids, parameters, lambda: self.weight)
            if made is not None:
                return F.embedding(ids.long(), made)
        flat = ids.reshape(-1).long()
        self._require_rows(flat)
        if not _plain(flat, parameters) or len(flat) < _MANY:
            rows = self.rows(flat)
        elif learns:
            distinct, places = self._distinct(flat)
            rows = self.rows(distinct)
            rows = rows if places is None else F.embedding(places, rows)
        else:
            rows = self._in_tiles(flat)
        if self.padding_idx is not None and rows.requires_grad:
            rows = torch.where((flat == self.padding_idx)[:, None], rows.detach(), rows)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def set_execution(self, *, memory: Memory = "compact", autotune: bool = False) -> Self:  # noqa: ARG002  # of layers
        """Choose how rows are found; fast execution keeps the dense table between calls without gradients.

        A tied head keeps one of its own. Changes of parameters are seen; after one of an index call this again.
        There is one way to make rows: ``autotune``, which is of layers with plans, changes nothing here.

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

    def _require_rows(self, ids: Tensor) -> None:
        """Refuse indices beside the table, of which padding has some."""
        if _traced() or not len(ids):
            return
        low, high = (int(each) for each in ids.aminmax())
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(f"the table has rows 0 to {self.num_embeddings - 1}, got {low if low < 0 else high}")

    def _in_tiles(self, ids: Tensor) -> Tensor:
        """``(n,)`` to ``(n, embedding_dim)`` without gradients, so many rows at a time as fit a core's cache."""
        like = self._parameter()
        found = torch.empty(len(ids), self.embedding_dim, dtype=like.dtype, device=like.device)
        distinct, places = self._distinct(ids)
        make, count, tile = self.maker(distinct), len(distinct), max(_SCRATCH // self.scratch(), 1)
        for start in range(0, count, tile):
            some = slice(start, min(start + tile, count))
            make(some, found[some])
        if places is not None:
            torch.index_select(found[:count], 0, places[count:], out=found[count:])
            # From the end: a row stands where its token comes first or before that, so none is written over too early.
            tile = max(_SCRATCH // self.embedding_dim, 1)
            for stop in range(count, 0, -tile):
                some = slice(max(stop - tile, 0), stop)
                found[some] = found.index_select(0, places[some])
        return found

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each token once, in the order in which they come first, and where each of ``ids`` is among them.

        All of them, and None, where hardly any comes twice.
        """
        numbers = torch.arange(len(ids), device=ids.device)
        # By a table of all tokens, or by sorting where that would be much larger than what is asked for.
        count, at = self.num_embeddings, ids
        if count > _SPARSE * len(ids):
            some, at = torch.unique(ids, return_inverse=True)
            count = len(some)
        first = torch.full((count,), len(ids), device=ids.device)
        first = first.scatter_reduce_(0, at, numbers, "amin").index_select(0, at)
        new = first == numbers
        so_far = new.cumsum(0)
        if int(so_far[-1]) > _DISTINCT * len(ids):
            return ids, None
        return ids[new], (so_far - 1).index_select(0, first)


def _plain(ids: Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether rows may be made in place, and so many as there are distinct ones.

    Not where a compiler would have to know that, nor of dual or batched tensors.
    """
    return not _traced() and keepable(ids, parameters)


def _traced() -> bool:
    """Whether the numbers of a tensor are not to be asked for: of a graph, or of a batch that a transform hides."""
    return torch.compiler.is_compiling() or bool(torch._C._are_functorch_transforms_active())
