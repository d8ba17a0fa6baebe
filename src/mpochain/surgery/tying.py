"""A head that keeps the weight of an embedding, as language models have it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mpochain.errors import DTypeError
from mpochain.nn.description import describe
from mpochain.nn.embeddings import MPOEmbedding, RowEmbedding, RowLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.nn.skeleton import skeleton

__all__ = ["tied_head", "tied_linears"]


def tied_head(embedding: RowEmbedding) -> MPOLinear | PermutedLinear | RowLinear:
    """A linear layer from features to the embedding's rows, of the same parameters: ``(..., dim) -> (..., rows)``.

    Both learn as one, and a checkpoint holds the parameters once. That of an :class:`mpochain.MPOEmbedding` is a chain.

    Args:
        embedding: is not changed.

    Example:
        >>> import torch
        >>> embedding = MPOEmbedding(10, 6, max_bond=2)
        >>> head = tied_head(embedding)
        >>> head.core_0_0 is embedding.table.core_0_0, head(torch.zeros(1, 6)).shape
        (True, torch.Size([1, 10]))
    """
    table = embedding.table if isinstance(embedding, MPOEmbedding) else embedding
    twin = skeleton(describe(table), None, "the head")
    for ours, theirs in zip(twin.modules(), table.modules(), strict=True):
        for name in list(ours._parameters):
            setattr(ours, name, theirs._parameters[name])
        for name in list(ours._buffers):
            setattr(ours, name, theirs._buffers[name])
    head = RowLinear(twin) if isinstance(twin, RowEmbedding) else twin
    assert isinstance(head, MPOLinear | PermutedLinear | RowLinear)
    return head.train(embedding.training)


def tied_linears(model: nn.Module, embeddings: Iterable[nn.Module]) -> dict[nn.Linear, nn.Embedding]:
    """The dense heads that are tied to some of these embeddings, and to which.

    Args:
        model: is not changed.
        embeddings: of the model; other modules among them are passed over.

    Raises:
        DTypeError: a module other than a plain linear layer without bias that holds the table of one of them.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tied_linears(model, [model[0]])
        {Linear(in_features=4, out_features=9, bias=False): Embedding(9, 4)}
    """
    tables = {id(each.weight): each for each in embeddings if isinstance(each, nn.Embedding)}
    found: dict[nn.Linear, nn.Embedding] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            table = tables.get(id(parameter))
            if table is None or module is table:
                continue
            plain = type(module).forward is nn.Linear.forward and "bias" not in dict(module.named_parameters())
            if not (isinstance(module, nn.Linear) and plain):
                raise DTypeError(
                    f"{name} shares the table of an embedding, and only a plain nn.Linear without bias can be tied to "
                    f"a chain, got {type(module).__name__}"
                )
            found[module] = table
    return found
