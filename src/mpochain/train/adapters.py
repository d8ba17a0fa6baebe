"""Chains as adapters: added beside frozen layers, trained, merged, and saved alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from mpochain import shapes
from mpochain.errors import ArgumentError
from mpochain.nn import AdaptedLinear
from mpochain.nn.dense import dense_shape
from mpochain.spec import ChainSpec
from mpochain.surgery.finding import parts_of_layers, require_module
from mpochain.surgery.replacement import replace_layers
from mpochain.train.patterns import matching

__all__ = ["adapt", "adapted_layers", "merge_adapters"]


def adapt(
    model: nn.Module,
    *,
    bond: int = 4,
    sites: int = 2,
    targets: Iterable[str] | None = None,
    specs: Mapping[str, ChainSpec] | None = None,
) -> dict[str, AdaptedLinear]:
    """Put a chain beside dense layers of a model, in place, and freeze everything else.

    The model computes what it did before. Training it, by :func:`mpochain.finetune` or any loop, trains the chains
    alone. :func:`merge_adapters` adds them to the weights, and :func:`mpochain.train.save_adapter` writes them alone.

    Args:
        model: changed in place; none of its parameters but those of the chains require gradients afterwards.
        bond: bond of the chains.
        sites: number of their sites, with dims as equal as possible.
        targets: names of layers, or ``re:`` patterns; by default all dense linear layers but those that share their
            weight, such as tied heads.
        specs: specs of single layers by name, in place of ``bond`` and ``sites``; these layers are adapted, too.

    Returns:
        The adapted layers, by name.

    Raises:
        ArgumentError: nothing is left to adapt, a pattern matches no dense linear layer, the model has adapters
            already, or a layer has hooks.
        ShapeError: a spec of another shape than its layer.
        SpecError: ``bond`` or ``sites`` describe no chain.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
        >>> list(adapt(model, bond=2, targets=["0"]))
        ['0']
        >>> [name for name, value in model.named_parameters() if value.requires_grad]
        ['0.delta.core_0_0', '0.delta.core_0_1']
    """
    require_module(model)
    if adapted_layers(model):
        raise ArgumentError("the model has adapters already; merge them first (merge_adapters), or train these")
    dense = _dense_layers(model)
    own = specs or {}
    default = () if own else dense
    names = [matching(dense, pattern, "targets", "dense linear layer") for pattern in targets or default]
    names += [matching(dense, name, "specs", "dense linear layer") for name in own]
    chosen = dict.fromkeys(name for matched in names for name in matched)
    if not chosen:
        raise ArgumentError(f"{type(model).__name__} has no dense linear layer to adapt")
    layers = {name: AdaptedLinear(dense[name], own.get(name) or _spec(dense[name], bond, sites)) for name in chosen}
    replace_layers(model, {layer.base: layer for layer in layers.values()})
    trained = {id(parameter) for layer in layers.values() for parameter in layer.delta.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return layers


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers of a model with an adapter, by name.

    Example:
        >>> adapted_layers(nn.Linear(2, 2))
        {}
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def merge_adapters(model: nn.Module) -> int:
    """Add the chains of all adapters to the weights of their layers, in place; the model has plain layers again.

    Parameters stay frozen; call ``model.requires_grad_()`` to train them.

    Returns:
        How many layers had an adapter.

    Raises:
        ArgumentError: there are none, or a sum is not finite; no layer is merged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 64))
        >>> _ = adapt(model, bond=2)
        >>> merge_adapters(model), type(model[0]).__name__
        (1, 'Linear')
    """
    layers = adapted_layers(model)
    if not layers:
        raise ArgumentError(f"{type(model).__name__} has no adapters to merge")
    for name, layer in layers.items():
        if not layer.weight.isfinite().all():
            raise ArgumentError(
                f"{name}: the weight with its adapter is not finite; the chain holds NaN or is too large"
            )
    replace_layers(model, {layer: layer.merged() for layer in layers.values()})
    return len(layers)


def _dense_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Dense linear layers whose weight no other module has, by name."""
    inner = parts_of_layers(model)
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if name
        and module not in inner
        and dense_shape(module) is not None
        and all(holders[id(parameter)] == 1 for parameter in module.parameters(recurse=False))
    }


def _spec(layer: nn.Module, bond: int, sites: int) -> ChainSpec:
    shape = dense_shape(layer)
    assert shape is not None
    out, in_ = shape
    out_dims, in_dims = (shapes.default_dims(size, sites) for size in shape)
    return ChainSpec(out_dims, in_dims, bond, out_features=out, in_features=in_)
