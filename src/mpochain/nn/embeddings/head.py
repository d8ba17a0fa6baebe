"""Output heads tied to a compressed embedding, and the linear layer that computes the table's rows in tiles."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import SerializeAsAny, field_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mpochain.nn.embeddings.mpo import MPOEmbedding
from mpochain.nn.embeddings.quantized import QuantizedEmbedding
from mpochain.nn.embeddings.rows import RowEmbedding
from mpochain.nn.entry import LayerEntry
from mpochain.nn.index import Index
from mpochain.nn.kinds import LAYERS
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.numbers import Numbers

__all__ = ["RowLinear", "RowsEntry", "tied_head"]

Layer = TypeVar("Layer", bound=CompressedLayer)

# Largest number of elements of a tile of rows with its intermediate products: 64 MiB of float32.
_AT_ONCE = 1 << 24


class RowsEntry(LayerEntry):
    """Entry of a :class:`mpochain.nn.RowLinear`."""

    kind: Literal["rows"] = "rows"
    table: SerializeAsAny[LayerEntry]

    @field_validator("table", mode="before")
    @classmethod
    def _of_an_embedding(cls, data: Any) -> LayerEntry:
        if isinstance(data, LayerEntry):
            return data
        layer = LAYERS.get(str(data.get("kind"))) if isinstance(data, dict) else None
        if layer is None or not issubclass(layer, RowEmbedding):
            raise ValueError("the table must be the entry of an embedding")
        return layer.Entry.model_validate(data)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the weight."""
        return self.table.shape


class RowLinear(CompressedLayer):
    """``y = x W^T`` with ``W`` the table of an embedding: ``(..., embedding_dim)`` to ``(..., num_embeddings)``.

    Every input needs all rows, so unlike a look-up this layer computes the whole table, in tiles of about 64 MiB
    including intermediate products; the backward pass recomputes them. To tie a head to an embedding, use
    :func:`mpochain.surgery.tied_head`; the head of an :class:`mpochain.MPOEmbedding` is a chain, which computes no
    rows.

    Args:
        table: the embedding; it becomes a submodule and is not copied.

    Example:
        >>> from mpochain.nn import EntangledEmbedding
        >>> table = EntangledEmbedding(30, 16, order=2)
        >>> x = torch.randn(2, 16)
        >>> torch.allclose(RowLinear(table)(x), x @ table.weight.T, atol=1e-6)
        True
    """

    kind = "rows"
    Entry = RowsEntry

    def __init__(self, table: RowEmbedding) -> None:
        super().__init__()
        self.table = table
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        return self.table.weight

    def indices(self) -> dict[str, Index]:
        """See :meth:`mpochain.nn.CompressedLayer.indices`."""
        return {f"table.{name}": index for name, index in self.table.indices().items()}

    def own_types(self) -> dict[str, torch.dtype]:
        """See :meth:`mpochain.nn.CompressedLayer.own_types`."""
        return {f"table.{name}": dtype for name, dtype in self.table.own_types().items()}

    def require_valid(self, name: str) -> None:
        """See :meth:`mpochain.nn.CompressedLayer.require_valid`."""
        self.table.require_valid(f"{name}.table")

    def numbers(self) -> Numbers:
        """Parameters and bytes of the table, and multiply-adds of this layer."""
        return dataclasses.replace(self.table.numbers(), macs=self.macs())

    def entry(self) -> RowsEntry:
        """The entry of the table."""
        return RowsEntry(table=self.table.entry())

    @classmethod
    def from_entry(cls, entry: RowsEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        table = LAYERS[entry.table.kind].from_entry(entry.table)
        assert isinstance(table, RowEmbedding)  # the entry was checked
        return cls(table)

    def form(self) -> str:
        """The form of the table."""
        return self.table.form()

    def macs(self) -> int:
        """Multiply-adds per input row, without those that compute the table: all inputs share these."""
        return self.in_features * self.out_features

    def reset_parameters(self) -> None:
        """Draw new parameters of the table."""
        self.table.reset_parameters()

    def compact(self, x: Tensor) -> Tensor:
        """The layer's output, in tiles of rows of the table that the backward pass recomputes."""
        ids = torch.arange(self.out_features, device=self.device)
        parts = ids.split(max(_AT_ONCE // (self.table.scratch() + self.in_features), 1))
        if len(parts) == 1:
            return self._outputs(x, ids)
        if not self._records_gradients(x):
            return torch.cat([self._outputs(x, part) for part in parts], dim=-1)
        # The computation has no randomness, so there is no generator state to preserve.
        again = partial(checkpoint, self._outputs, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(x, part) for part in parts], dim=-1)

    def extra_repr(self) -> str:
        """Features, for ``print(layer)``; the table prints itself."""
        return f"{self.in_features} -> {self.out_features}"

    def _outputs(self, x: Tensor, ids: Tensor) -> Tensor:
        """The output features ``ids``."""
        return F.linear(x, self.table.rows(ids))

    def _set_execution(self, cache: bool, autotune: bool | None) -> None:
        self.table.set_execution(cache=cache, autotune=autotune)
        super()._set_execution(cache, autotune)


def tied_head(embedding: RowEmbedding) -> CompressedLayer:
    """An output head that shares the parameters of an embedding: ``(..., embedding_dim) -> (..., num_embeddings)``.

    Head and embedding train the same parameters, which a checkpoint stores once. The head of an
    :class:`mpochain.MPOEmbedding` is a chain, that of a :class:`mpochain.QuantizedEmbedding` a
    :class:`mpochain.QuantizedLinear`, and the head of any other embedding a :class:`mpochain.nn.RowLinear`.

    Args:
        embedding: the embedding; not changed.

    Example:
        >>> from mpochain import MPOEmbedding
        >>> embedding = MPOEmbedding(10, 6, max_bond=2)
        >>> head = tied_head(embedding)
        >>> head.core_0_0 is embedding.table.core_0_0, head(torch.zeros(1, 6)).shape
        (True, torch.Size([1, 10]))
    """
    head: CompressedLayer
    if isinstance(embedding, MPOEmbedding):
        head = _twin(embedding.table)
    elif isinstance(embedding, QuantizedEmbedding):
        head = _sharing(embedding.linear(), embedding)
    else:
        head = RowLinear(_twin(embedding))
    return head.train(embedding.training)


def _twin(layer: Layer) -> Layer:
    """A second layer with the same entry, which shares the parameters and buffers of the first."""
    return _sharing(type(layer).from_entry(layer.entry()), layer)


def _sharing(twin: Layer, layer: CompressedLayer) -> Layer:
    """Give a layer the parameters and buffers of another one that has the same."""
    for ours, theirs in zip(twin.modules(), layer.modules(), strict=True):
        for name in list(ours._parameters):
            setattr(ours, name, theirs._parameters.get(name))
        for name in list(ours._buffers):
            setattr(ours, name, theirs._buffers[name])
    return twin
