"""Embedding whose table is held in 8-, 4-, 3- or 2-bit codes."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError
from mpochain.nn.dense import dense_table
from mpochain.nn.embeddings.rows import Maker, RowEmbedding
from mpochain.nn.entry import MatrixEntry, Padding
from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.dequantization import dequantised
from mpochain.nn.quantized.layer import QuantizedLayer, SchemeEntry
from mpochain.nn.quantized.linear import QuantizedLinear
from mpochain.quantization import Quantized, Scheme, nearest

__all__ = ["QuantizedEmbedding", "QuantizedEmbeddingEntry"]


class QuantizedEmbeddingEntry(MatrixEntry, SchemeEntry):
    """Entry of a :class:`QuantizedEmbedding`."""

    kind: Literal["quantized_embedding"] = "quantized_embedding"
    padding: Padding


class QuantizedEmbedding(QuantizedLayer, RowEmbedding):
    """A table ``W = (codes - zeros) * scales`` whose rows are dequantised: ``(...)`` to ``(..., embedding_dim)``.

    Its tensors are those of a :class:`QuantizedLinear`, which is also its tied head, see
    :func:`mpochain.surgery.tied_head`. See :class:`mpochain.nn.RowEmbedding`.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        scheme: bits, group and symmetry.
        padding_idx: a row that gets no gradient from look-ups, as in ``nn.Embedding``.
        device: device of the tensors.
        dtype: element type of the rows; scales are float16 regardless.

    Raises:
        ArgumentError: a size below 1, or a ``padding_idx`` outside of the table.

    Example:
        >>> embedding = QuantizedEmbedding(50257, 768, Scheme(4))
        >>> embedding.numbers().bytes, embedding(torch.tensor([[0, 7, 7]])).shape
        (21107940, torch.Size([1, 3, 768]))
    """

    kind = "quantized_embedding"
    Entry = QuantizedEmbeddingEntry
    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        scheme: Scheme,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        RowEmbedding.__init__(self, num_embeddings, embedding_dim, padding_idx)
        if not isinstance(scheme, Scheme):
            raise ArgumentError(f"scheme must be a mpochain.quantization.Scheme, got {type(scheme).__name__}")
        self.scheme = scheme
        self._register_prototype(device, dtype)
        self._coded = CodedTensor("weight", (num_embeddings, embedding_dim), scheme)
        self._coded.register(self, device)
        self.reset_parameters()

    @classmethod
    def from_codes(cls, codes: Quantized, padding_idx: int | None = None, dtype: torch.dtype | None = None) -> Self:
        """An embedding with copies of a quantised table ``(num_embeddings, embedding_dim)``.

        Args:
            codes: the table.
            padding_idx: see :class:`QuantizedEmbedding`.
            dtype: element type of the rows; torch's default if not given.

        Example:
            >>> table = torch.randn(6, 8)
            >>> embedding = QuantizedEmbedding.from_codes(nearest(table, Scheme(8)))
            >>> bool((embedding.weight - table).norm() < 0.01 * table.norm())
            True
        """
        embedding = cls(*codes.shape, codes.scheme, padding_idx=padding_idx, device="meta", dtype=dtype)
        embedding = embedding.to_empty(device=codes.codes.device)
        embedding._coded.assign(embedding, codes)
        return embedding

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, scheme: Scheme, name: str = "the table") -> Self:
        """Round the table of a dense embedding to the nearest codes.

        Args:
            embedding: the dense embedding; not changed, and shares no memory with the result.
            scheme: bits, group and symmetry.
            name: name of the table in errors.

        Raises:
            DTypeError: another module, or an embedding with ``max_norm=``, ``scale_grad_by_freq=`` or ``sparse=``.
            NonFiniteError: NaN or infinite entries.

        Example:
            >>> QuantizedEmbedding.from_embedding(nn.Embedding(12, 8), Scheme(3)).form()
            '3 bits in groups of 64'
        """
        table = dense_table(embedding)
        codes = nearest(table.detach(), scheme, name=name)
        layer = cls.from_codes(codes, embedding.padding_idx, table.dtype)
        layer.weight_scale.requires_grad_(table.requires_grad)
        return layer.replacing(embedding).train(embedding.training)

    @property
    def coded(self) -> tuple[CodedTensor, ...]:
        """See :attr:`mpochain.nn.QuantizedLayer.coded`."""
        return (self._coded,)

    def codes(self) -> Quantized:
        """A copy of the table's codes, scales and zero points."""
        return self._coded.quantized(self)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (num_embeddings, embedding_dim)``, differentiable; built at every access."""
        return self._coded.dequantised(self, self.dtype)

    def linear(self) -> QuantizedLinear:
        """A linear layer whose weight is the table, without bias, on the meta device: it has the same tensors."""
        return QuantizedLinear(self.embedding_dim, self.num_embeddings, self.scheme, bias=False, device="meta")

    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """See :meth:`mpochain.nn.RowEmbedding.reset_parameters`."""
        if self.device.type == "meta":
            return
        table = torch.empty(self.shape, device=self.device).normal_(0.0, weight_std)
        self._coded.assign(self, nearest(table, self.scheme))

    def entry(self) -> QuantizedEmbeddingEntry:
        """The sizes, the scheme and the padding row."""
        return QuantizedEmbeddingEntry(
            out_features=self.num_embeddings,
            in_features=self.embedding_dim,
            **SchemeEntry.fields(self.scheme),
            padding=self.padding_idx,
        )

    @classmethod
    def from_entry(cls, entry: QuantizedEmbeddingEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        sizes = entry.out_features, entry.in_features
        return cls(*sizes, entry.scheme(), padding_idx=entry.padding, device="meta")

    def form(self) -> str:
        """The scheme in words."""
        return str(self.scheme)

    def macs(self) -> int:
        """0: rows are dequantised, which multiplies nothing with the rows of other tokens."""
        return 0

    def scratch(self) -> int:
        """See :meth:`mpochain.nn.RowEmbedding.scratch`: codes in bytes and in wider integers, and float32 values."""
        return 3 * self.embedding_dim

    def maker(self, ids: Tensor) -> Maker:
        """Dequantise rows, see :meth:`mpochain.nn.RowEmbedding.maker`."""
        words, scales, zeros = self._coded.stored(self)
        dtype = self.dtype

        def make(part: slice, out: Tensor | None) -> Tensor:
            chosen = ids[part]
            rows = dequantised(
                words.index_select(0, chosen),
                scales.index_select(0, chosen),
                None if zeros is None else zeros.index_select(0, chosen),
                self.scheme,
                self.embedding_dim,
                dtype,
            )
            return rows if out is None else out.copy_(rows)

        return make

    def extra_repr(self) -> str:
        """Sizes and scheme, for ``print(embedding)``."""
        return f"{super().extra_repr()}, {self.scheme}"
