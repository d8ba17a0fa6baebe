"""Output heads tied to an embedding, as in language models."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mpochain.errors import DTypeError
from mpochain.nn.embeddings import tied_head

__all__ = ["tied_head", "tied_linears"]


def tied_linears(model: nn.Module, embeddings: Iterable[nn.Module]) -> dict[nn.Linear, nn.Embedding]:
    """Find the dense heads tied to any of these embeddings, and map each to its embedding.

    Args:
        model: the model; not changed.
        embeddings: embeddings of the model; other modules are ignored.

    Raises:
        DTypeError: a module other than a plain ``nn.Linear`` without bias shares the table of an embedding.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tied_linears(model, [model[0]])
        {Linear(in_features=4, out_features=9, bias=False): Embedding(9, 4)}
    """
    tables = {id(module.weight): module for module in embeddings if isinstance(module, nn.Embedding)}
    heads: dict[nn.Linear, nn.Embedding] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            table = tables.get(id(parameter))
            if table is None or module is table:
                continue
            plain = type(module).forward is nn.Linear.forward and "bias" not in dict(module.named_parameters())
            if not (isinstance(module, nn.Linear) and plain):
                raise DTypeError(
                    f"{name} shares the table of an embedding; only a plain nn.Linear without bias can be tied to a "
                    f"compressed one, got {type(module).__name__}"
                )
            heads[module] = table
    return heads
