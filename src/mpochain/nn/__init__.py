"""Compressed layers: linear layers and embeddings in place of dense ones."""

from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.sum import SumLinear

__all__ = [
    "EntangledEmbedding",
    "InterpolativeLinear",
    "MPOEmbedding",
    "MPOLinear",
    "PermutedLinear",
    "RowEmbedding",
    "RowLinear",
    "SumLinear",
    "TokenTrainEmbedding",
]
