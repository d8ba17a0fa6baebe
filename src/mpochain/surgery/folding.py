"""Orders of rows and columns that neighbouring layers take over, so that nothing is looked up for them.

The hidden features of an MLP have no order of their own: what lies between its layers works on each alone, so any order
will do that all of them share. Layers without an order take over any, as their rows or columns are stored in it; of
those that have one the most are served that can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mpochain.architectures import mlps
from mpochain.errors import DTypeError
from mpochain.nn.dense import dense_parameters
from mpochain.nn.interpolative import InterpolativeLinear
from mpochain.nn.linear import MPOLinear
from mpochain.nn.permuted import PermutedLinear
from mpochain.surgery.replacement import replace_layers

__all__ = ["fold_orders"]


@torch.no_grad()
def fold_orders(model: nn.Module) -> int:
    """Let the layers of each MLP share one order of its hidden features; the function of the model stays the same.

    Known are MLPs of transformers, see :func:`mpochain.architectures.mlps`: modules with ``gate_proj``, ``up_proj`` and
    ``down_proj``, for example, or ``c_fc`` and ``c_proj``, with nothing beside them that holds parameters, and
    functions of each feature alone between them. Other modules, and layers that several modules share, are left as they
    are.

    Args:
        model: changed in place; layers that need no order any more become plain :class:`mpochain.MPOLinear`. Some
            parameters are new ones, so make an optimiser afterwards; and what lies between the layers of an MLP is in
            another order then than in the dense model.

    Returns:
        How many look-ups, of rows or columns of a layer, are saved at each call.

    Example:
        >>> class MLP(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         up = MPOLinear(4, 6, max_bond=2, bias=False)
        ...         self.fc1 = PermutedLinear(up, rows=torch.tensor([5, 4, 3, 2, 1, 0]))
        ...         self.fc2 = nn.Linear(6, 4)
        ...
        ...     def forward(self, x):
        ...         return self.fc2(torch.relu(self.fc1(x)))
        >>> model, x = MLP(), torch.randn(2, 4)
        >>> before = model(x)
        >>> fold_orders(model), torch.allclose(model(x), before, atol=1e-6), type(model.fc1).__name__
        (1, True, 'MPOLinear')
    """
    saved = 0
    shared = _shared(model)
    known = [mlp for mlp in mlps(model) if not mlp.gated]
    for parent in list(model.modules()):
        children = dict(parent.named_children())
        for writers, reader in ((mlp.writers, mlp.reader) for mlp in known):
            if not {reader, *writers} <= set(children):
                continue
            layers = [children[name] for name in (*writers, reader)]
            # Nothing else that could tell features apart.
            held = {key for key in parent.state_dict() if key.split(".")[0] not in (*writers, reader)}
            if not held and shared.isdisjoint(layers):
                saved += _fold(layers[:-1], layers[-1], parent)
    return saved


def _shared(model: nn.Module) -> set[nn.Module]:
    """Modules that are in several places, or that share a parameter with another one."""
    places: dict[nn.Module, int] = {}
    holders: dict[int, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                places[child] = places.get(child, 0) + 1
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    tied = {module for module in model.modules() if any(holders[id(each)] > 1 for each in module.parameters())}
    return {module for module, count in places.items() if count > 1} | tied


def _fold(writers: Sequence[nn.Module], reader: nn.Module, parent: nn.Module) -> int:
    """Give one MLP the order that leaves the fewest look-ups."""
    layers = [*writers, reader]
    if not any(isinstance(layer, PermutedLinear) for layer in layers) or not all(map(_known, layers)):
        return 0
    wanted = _sizes(reader)[1]
    if {_sizes(writer)[0] for writer in writers} != {wanted}:
        return 0
    given = torch.arange(wanted)
    candidates = [given]
    for writer in writers:
        if isinstance(writer, PermutedLinear) and writer.place is not None:
            candidates.append(torch.argsort(writer.place.cpu()))
    if isinstance(reader, PermutedLinear) and reader.columns is not None:
        candidates.append(reader.columns.cpu().long())

    def look_ups(order: Tensor) -> int:
        return sum(_writer_looks(writer, order) for writer in writers) + _reader_looks(reader, order)

    costs = [look_ups(order) for order in candidates]
    best = min(range(len(candidates)), key=costs.__getitem__)
    if costs[best] == costs[0]:
        return 0
    order = candidates[best]
    made: dict[nn.Module, nn.Module] = {writer: _written(writer, order) for writer in writers}
    made[reader] = _read(reader, order)
    replace_layers(parent, made)
    return costs[0] - costs[best]


def _known(layer: nn.Module) -> bool:
    """Whether all that a layer does is known, so that its rows or columns may be moved."""
    if is_parametrized(layer):
        return False
    if isinstance(layer, InterpolativeLinear | MPOLinear | PermutedLinear):
        return True
    try:
        dense_parameters(layer)
    except DTypeError:
        return False
    return "weight" in layer._parameters  # not made of others by an older kind of parametrisation


def _sizes(layer: Any) -> tuple[int, int]:
    if hasattr(layer, "out_features"):
        return int(layer.out_features), int(layer.in_features)
    out, in_ = dense_parameters(layer)[0].shape
    return int(out), int(in_)


def _writer_looks(layer: nn.Module, order: Tensor) -> int:
    """Look-ups of a layer whose outputs are to be in an order: the new one's feature ``j`` is the old ``order[j]``."""
    if isinstance(layer, PermutedLinear):
        place = torch.arange(len(order)) if layer.place is None else layer.place.cpu().long()
        return int(not _is_given(place[order]))
    return int(isinstance(layer, MPOLinear) and not _is_given(order))


def _reader_looks(layer: nn.Module, order: Tensor) -> int:
    """Look-ups of a layer whose inputs are in an order."""
    if isinstance(layer, PermutedLinear):
        columns = torch.arange(len(order)) if layer.columns is None else layer.columns.cpu().long()
        return int(not _is_given(torch.argsort(order)[columns]))
    return int(isinstance(layer, MPOLinear) and not _is_given(order))


def _written(layer: Any, order: Tensor) -> nn.Module:
    """The layer with its outputs in an order."""
    if isinstance(layer, PermutedLinear | MPOLinear):
        inner, place, columns = _parts(layer)
        bias = None if layer.bias is None else layer.bias[order]
        place = order if place is None else place[order]
        return _permuted(layer, inner, place, columns, bias)
    if isinstance(layer, InterpolativeLinear):
        layer.place.copy_(layer.place[order])
        layer.set_execution(memory=layer.memory)  # forgets what was made of the old order
    else:
        weight, _ = dense_parameters(layer)
        weight.copy_(weight[order].clone())
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order].clone())
    return layer


def _read(layer: Any, order: Tensor) -> nn.Module:
    """The layer for inputs in an order."""
    if isinstance(layer, PermutedLinear | MPOLinear):
        inner, place, columns = _parts(layer)
        back = torch.argsort(order)
        return _permuted(layer, inner, place, back if columns is None else back[columns], layer.bias)
    weight = layer.rows if isinstance(layer, InterpolativeLinear) else dense_parameters(layer)[0]
    weight.copy_(weight[:, order].clone())
    return layer


def _parts(layer: PermutedLinear | MPOLinear) -> tuple[MPOLinear, Tensor | None, Tensor | None]:
    if isinstance(layer, MPOLinear):
        return layer, None, None
    place, columns = (None if each is None else each.cpu().long() for each in (layer.place, layer.columns))
    return layer.inner, place, columns


def _permuted(
    old: PermutedLinear | MPOLinear, inner: MPOLinear, place: Tensor | None, columns: Tensor | None, bias: Tensor | None
) -> nn.Module:
    """A layer of the same cores; a plain one if no order is left."""
    place, columns = (None if each is None or _is_given(each) else each for each in (place, columns))
    made: MPOLinear | PermutedLinear
    if place is None and columns is None:
        made = MPOLinear.from_chains(inner.chains, bias)
    else:
        rows = None if place is None else torch.argsort(place)
        plain = MPOLinear.from_chains(inner.chains)
        made = PermutedLinear(plain, rows=rows, columns=columns, bias=bias).to(next(old.parameters()).device)
    learn = {name.rpartition(".")[2]: each.requires_grad for name, each in old.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(learn[name.rpartition(".")[2]])
    return made.set_execution(memory=old.memory).train(old.training)


def _is_given(order: Tensor) -> bool:
    return bool((order == torch.arange(len(order))).all())
