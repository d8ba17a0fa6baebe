"""Absorption of permutations into neighbouring layers of an MLP, which saves look-ups at each call.

The functions between the layers of an MLP act on every hidden feature separately, so permuting the hidden features in
all layers alike does not change the MLP's output. The order that needs the fewest look-ups is chosen. Interpolative
layers that write the hidden features together, as in a gated MLP, are made to store the same rows, so that one order
suits all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from mpochain.architectures import mlps
from mpochain.nn.reordering import (
    can_reorder,
    features_of,
    has_order,
    input_lookups,
    output_lookups,
    own_input_order,
    own_output_order,
    with_inputs,
    with_outputs,
)
from mpochain.nn.shared_rows import shared_rows
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.wrappers import require_replaceable_in

__all__ = ["absorb_orders"]


@torch.no_grad()
def absorb_orders(model: nn.Module) -> int:
    """Reorder the hidden features of each MLP for the fewest look-ups; the model's output changes by rounding only.

    Recognises the MLPs of Hugging Face transformers, see :func:`mpochain.architectures.mlps`: modules with
    ``gate_proj``, ``up_proj`` and ``down_proj``, or ``c_fc`` and ``c_proj``, for example, without other parameters and
    with elementwise functions between the layers. Other modules, and layers that several modules share, are not
    changed.

    Args:
        model: changed in place; layers that need no permutation any more become plain :class:`mpochain.MPOLinear`. Some
            parameters are replaced, so create the optimiser afterwards. Hidden features of an MLP may be in another
            order than in the dense model, with which they can no longer be compared one by one, as in distillation.

    Returns:
        Number of look-ups, of rows or columns of a layer, saved at each call.

    Raises:
        ArgumentError: compressed layers are inside a wrapper that would not notice their replacement, such as
            ``DistributedDataParallel``.

    Example:
        >>> from mpochain.nn import MPOLinear, PermutedLinear
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
        >>> absorb_orders(model), torch.allclose(model(x), before, atol=1e-6), type(model.fc1).__name__
        (1, True, 'MPOLinear')
    """
    require_replaceable_in(model, set(compressed_layers(model).values()))
    saved = 0
    shared = _shared(model)
    known = [mlp for mlp in mlps(model) if not mlp.gated]
    for parent in list(model.modules()):
        children = dict(parent.named_children())
        for writers, reader in ((mlp.writers, mlp.reader) for mlp in known):
            if not {reader, *writers} <= set(children):
                continue
            layers = [children[name] for name in (*writers, reader)]
            # Other parameters or buffers could act on individual features.
            held = {key for key in parent.state_dict() if key.split(".")[0] not in (*writers, reader)}
            if not held and shared.isdisjoint(layers):
                saved += _absorb(layers[:-1], layers[-1], parent)
    return saved


def _shared(model: nn.Module) -> set[nn.Module]:
    """Modules with more than one parent, or with a parameter that another module shares."""
    places: dict[nn.Module, int] = {}
    holders: dict[int, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                places[child] = places.get(child, 0) + 1
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    tied = {
        module for module in model.modules() if any(holders[id(parameter)] > 1 for parameter in module.parameters())
    }
    return {module for module, count in places.items() if count > 1} | tied


def _absorb(writers: Sequence[nn.Module], reader: nn.Module, parent: nn.Module) -> int:
    """Reorder the hidden features of one MLP for the fewest look-ups, and return the number saved."""
    layers = [*writers, reader]
    if not any(map(has_order, layers)) or not all(map(can_reorder, layers)):
        return 0
    hidden = features_of(reader)[1]
    if {features_of(writer)[0] for writer in writers} != {hidden}:
        return 0

    def lookups(order: Tensor, placed: Collection[nn.Module] = ()) -> int:
        written = sum(output_lookups(writer, order) for writer in writers if writer not in placed)
        return written + input_lookups(reader, order)

    best = torch.arange(hidden, device="cpu")
    fewest = before = lookups(best)
    for order in (*map(own_output_order, writers), own_input_order(reader)):
        if order is not None and lookups(order) < fewest:
            best, fewest = order, lookups(order)
    shared = shared_rows(writers) if fewest else None
    if shared is not None and lookups(shared.order, shared.factors) < fewest:
        best, fewest = shared.order, lookups(shared.order, shared.factors)
        shared.store()
    if fewest == before:
        return 0
    reordered: dict[nn.Module, nn.Module] = {writer: with_outputs(writer, best) for writer in writers}
    reordered[reader] = with_inputs(reader, best)
    replace_layers(parent, reordered)
    return before - fewest
