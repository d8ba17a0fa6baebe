"""Compressed embeddings, one form per file, and output heads tied to them."""

from mpochain.nn.embeddings.entangled import EntangledEmbedding
from mpochain.nn.embeddings.head import RowLinear, tied_head
from mpochain.nn.embeddings.mpo import MPOEmbedding
from mpochain.nn.embeddings.quantized import QuantizedEmbedding
from mpochain.nn.embeddings.quantized_parts import QuantizedPartsEmbedding
from mpochain.nn.embeddings.rows import RowEmbedding
from mpochain.nn.embeddings.token_train import TokenTrainEmbedding

__all__ = [
    "EntangledEmbedding",
    "MPOEmbedding",
    "QuantizedEmbedding",
    "QuantizedPartsEmbedding",
    "RowEmbedding",
    "RowLinear",
    "TokenTrainEmbedding",
    "tied_head",
]
