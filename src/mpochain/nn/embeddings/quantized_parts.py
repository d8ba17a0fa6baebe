"""Compressed embedding of any form whose tensors are held in 8-, 4-, 3- or 2-bit codes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mpochain.nn.embeddings.rows import Maker, RowEmbedding
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.quantized.tensors import QuantizedTensors

__all__ = ["QuantizedPartsEmbedding"]


class QuantizedPartsEmbedding(QuantizedTensors, RowEmbedding):
    """A compressed embedding whose tensors are held in codes: ``(...)`` to ``(..., embedding_dim)``.

    Each look-up dequantises all tensors of the table; see :class:`mpochain.nn.QuantizedParts`, whose ``of`` builds it.

    Example:
        >>> import torch
        >>> from mpochain import MPOEmbedding
        >>> from mpochain.nn import QuantizedParts
        >>> from mpochain.quantization import Scheme
        >>> embedding = QuantizedParts.of(MPOEmbedding(100, 64, max_bond=8), Scheme(8))
        >>> embedding(torch.tensor([[0, 7, 7]])).shape
        torch.Size([1, 3, 64])
    """

    kind = "quantized_parts_embedding"

    def _begin(self, layer: CompressedLayer) -> None:
        assert isinstance(layer, RowEmbedding)
        RowEmbedding.__init__(self, layer.num_embeddings, layer.embedding_dim, layer.padding_idx)

    @property
    def bias(self) -> None:  # type: ignore[override]  # read only: no embedding has one
        """None: embeddings have no bias."""
        return

    def maker(self, ids: Tensor) -> Maker:
        """Dequantise all tensors, then as the layer does; see :meth:`mpochain.nn.RowEmbedding.maker`."""
        table: Any = self.layer
        make: Maker = table.maker(ids)
        return make

    def scratch(self) -> int:
        """See :meth:`mpochain.nn.RowEmbedding.scratch`."""
        table: Any = self._skeleton[0]
        elements: int = table.scratch()
        return elements

    def reset_parameters(self, weight_std: float = 1.0) -> None:
        """See :meth:`mpochain.nn.RowEmbedding.reset_parameters`."""
        self._redraw(weight_std)

    def extra_repr(self) -> str:
        """Sizes and form, for ``print(embedding)``."""
        return f"{super().extra_repr()}, {self.form()}"
