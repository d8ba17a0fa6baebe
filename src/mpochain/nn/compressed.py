"""Which layers of a model are compressed, and what they are called."""

from __future__ import annotations

from torch import nn

from mpochain.nn.embeddings import EntangledEmbedding, MPOEmbedding, RowEmbedding, RowLinear, TokenTrainEmbedding
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.sum import SumLinear

__all__ = ["Compressed", "form_of"]

# A layer in place of a dense one.
Compressed = InterpolativeLinear | MPOLinear | PermutedLinear | RowEmbedding | RowLinear | SumLinear


def form_of(layer: nn.Module) -> str:
    """A compressed layer in a few words, for tables.

    Example:
        >>> form_of(InterpolativeLinear(4, 3, 2)), form_of(MPOLinear(8, 6, out_dims=(2, 3), in_dims=(2, 4), max_bond=2))
        ('rank 2, interpolative', '6x8 (2,3)|(2,4) bonds (2), 32 parameters')
    """
    if isinstance(layer, InterpolativeLinear):
        return f"rank {layer.rank}, interpolative"
    if isinstance(layer, MPOLinear):
        return " + ".join(map(str, layer.specs))
    if isinstance(layer, SumLinear):
        return " + ".join(map(form_of, layer.parts))
    if isinstance(layer, PermutedLinear):
        return f"{form_of(layer.inner)}, permuted"
    if isinstance(layer, MPOEmbedding | RowLinear):
        return form_of(layer.table)
    if isinstance(layer, EntangledEmbedding):
        dims = "x".join(map(str, layer.dims))
        return f"{layer.unit_count} units ({layer.source}), products of {dims}, rank {layer.ranks}"
    if isinstance(layer, TokenTrainEmbedding):
        return f"a train of {'x'.join(map(str, layer.dims))} for each row, bonds {layer.bonds}"
    return "dense"
