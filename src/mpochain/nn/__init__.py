"""Layers that hold chains."""

from mpochain.nn.densify import to_dense
from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.execution import set_execution
from mpochain.nn.folding import fold_orders
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.rates import learning_rate_scales
from mpochain.nn.sum import SumLinear
from mpochain.nn.tying import tied_head

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
    "fold_orders",
    "learning_rate_scales",
    "set_execution",
    "tied_head",
    "to_dense",
]
