"""Compressed linear layers and embeddings, one form per file."""

from mpochain.nn.adapted import AdaptedLinear
from mpochain.nn.block_train import BlockTrainLinear
from mpochain.nn.embeddings import (
    EntangledEmbedding,
    MPOEmbedding,
    QuantizedEmbedding,
    QuantizedPartsEmbedding,
    RowEmbedding,
    RowLinear,
    TokenTrainEmbedding,
)
from mpochain.nn.entry import LayerEntry, MatrixEntry
from mpochain.nn.experts import SeparateExperts
from mpochain.nn.index import Index
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.kinds import LAYERS
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.linear import MPOLinear
from mpochain.nn.linear_chain import LinearChain
from mpochain.nn.numbers import Numbers
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.quantized import CodedTensor, QuantizedLayer, QuantizedLinear, QuantizedParts, QuantizedTensors
from mpochain.nn.sum import SumLinear

__all__ = [
    "LAYERS",
    "AdaptedLinear",
    "BlockTrainLinear",
    "CodedTensor",
    "CompressedLayer",
    "EntangledEmbedding",
    "Index",
    "InterpolativeLinear",
    "LayerEntry",
    "LinearChain",
    "MPOEmbedding",
    "MPOLinear",
    "MatrixEntry",
    "Numbers",
    "PermutedLinear",
    "QuantizedEmbedding",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedParts",
    "QuantizedPartsEmbedding",
    "QuantizedTensors",
    "RowEmbedding",
    "RowLinear",
    "SeparateExperts",
    "SumLinear",
    "TokenTrainEmbedding",
]

# All layers that a checkpoint may hold.
_LAYERS: tuple[type[CompressedLayer], ...] = (
    MPOLinear,
    InterpolativeLinear,
    BlockTrainLinear,
    LinearChain,
    SumLinear,
    PermutedLinear,
    MPOEmbedding,
    EntangledEmbedding,
    TokenTrainEmbedding,
    RowLinear,
    QuantizedLinear,
    QuantizedParts,
    QuantizedEmbedding,
    QuantizedPartsEmbedding,
)
LAYERS.update({layer.kind: layer for layer in _LAYERS})
