"""Modules that wrap a model or a layer: torch.compile, data parallelism, adapters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from mpochain.errors import ArgumentError
from mpochain.nn import CompressedLayer
from mpochain.nn.dense import is_transposed
from mpochain.wording import kind_of

__all__ = [
    "adapted",
    "adapter_parts",
    "notice_replacement",
    "require_replaceable_in",
    "uncompiled",
    "unwrapped",
    "without_wrappers",
]

# Wrappers that compute what the module inside computes, with the attribute that holds it. Classes are compared by name,
# since importing them takes long, and some are of other packages.
_TRANSPARENT = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"

# Wrappers that keep references to the parameters inside, which a replacement would leave behind.
_HOLDING = {
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule",
    "deepspeed.runtime.engine.DeepSpeedEngine",
}

# Wrappers of PEFT: adapters beside a layer, and copies of a layer.
_ADAPTER, _COPIES = "peft.tuners.tuners_utils.BaseTunerLayer", "peft.utils.other.AuxiliaryTrainingWrapper"


def _kinds(module: nn.Module) -> Iterator[str]:
    for kind in type(module).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"


def _inside(module: nn.Module) -> str | None:
    """The attribute that holds the module inside a transparent wrapper; None for other modules."""
    return next((_TRANSPARENT[kind] for kind in _kinds(module) if kind in _TRANSPARENT), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> unwrapped(torch.compile(model)) is model, unwrapped(model) is model
        (True, True)
    """
    while (attribute := _inside(model)) is not None:
        model = getattr(model, attribute)
    return model


@contextmanager
def without_wrappers(model: nn.Module, *, editing: bool = False) -> Iterator[nn.Module]:
    """The model without transparent wrappers around it or around its parts, so that its names are the plain ones.

    On exit the wrappers are in their places again, around what is there then.

    Args:
        model: changed in place until the context ends.
        editing: whether layers will be replaced: then ``DistributedDataParallel`` stays, so that it can be refused.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model[0] = torch.compile(model[0])
        >>> with without_wrappers(torch.compile(model)) as plain:
        ...     print(list(plain.state_dict()))
        ['0.weight', '0.bias']
    """
    model = _innermost(model, editing)[-1]
    places = [
        (parent, key, _innermost(child, editing))
        for parent in list(model.modules())
        for key, child in parent._modules.items()
        if child is not None
    ]
    places = [place for place in places if len(place[2]) > 1]
    try:
        for parent, key, layers in places:
            parent._modules[key] = layers[-1]
        yield model
    finally:
        for parent, key, (*wrappers, inside) in places:
            replacement = parent._modules[key]
            if replacement is not inside:
                attribute = _inside(wrappers[-1])
                assert attribute is not None
                wrappers[-1]._modules[attribute] = replacement
                notice_replacement(wrappers[-1])
            parent._modules[key] = wrappers[0]


def _innermost(module: nn.Module, editing: bool) -> list[nn.Module]:
    """A module, and the modules inside it as long as they are wrapped, from the outside in."""
    layers = [module]
    while (attribute := _inside(layers[-1])) is not None:
        if editing and not _HOLDING.isdisjoint(_kinds(layers[-1])):
            break
        layers.append(getattr(layers[-1], attribute))
    return layers


def adapter_parts(model: nn.Module) -> set[nn.Module]:
    """All modules of PEFT's adapters, without the layers that the adapters adapt."""
    parts: set[nn.Module] = set()
    for module in model.modules():
        kinds = set(_kinds(module))
        if _ADAPTER in kinds or _COPIES in kinds:
            adapted = module._modules.get("base_layer") if _ADAPTER in kinds else None
            kept = set() if adapted is None else set(adapted.modules())
            parts.update(part for part in module.modules() if part not in kept)
    return parts


def adapted(model: nn.Module) -> set[nn.Module]:
    """All modules that an adapter of PEFT adapts."""
    layers = (module._modules.get("base_layer") for module in model.modules() if _ADAPTER in set(_kinds(module)))
    return {layer for layer in layers if layer is not None}


def require_replaceable_in(model: nn.Module, layers: Collection[nn.Module]) -> None:
    """Refuse to replace layers inside a wrapper that would go on with the old layer or its parameters.

    Raises:
        ArgumentError: naming one of the layers, the wrapper, and what to do.
    """
    adapters = adapter_parts(model)
    for name, module in model.named_modules():
        kinds = set(_kinds(module))
        kind = f"{type(module).__module__.partition('.')[0]}'s {type(module).__name__}"
        if module in adapters and module in layers:
            raise ArgumentError(
                f"{name} is part of an adapter; leave it out with ignore=, or merge the adapters first "
                "(merge_and_unload())"
            )
        if module in layers and isinstance(module, CompressedLayer) and not adapters.isdisjoint(module.modules()):
            raise ArgumentError(
                f"{name} has adapters inside, which its replacement would lose; merge them first (merge_and_unload())"
            )
        if kinds & _HOLDING:
            for inner, child in module.named_modules(prefix=name):
                if child in layers:
                    raise ArgumentError(
                        f"{inner} is inside {kind}, which would go on with the old layer's parameters; edit the model "
                        "first and wrap it afterwards"
                    )
        if _ADAPTER in kinds and module._modules.get("base_layer") in layers:
            _require_adaptable(module, f"{name}.base_layer", kind)


def _require_adaptable(adapter: Any, name: str, words: str) -> None:
    """Refuse an adapter that reads more from its layer than a compressed layer has."""
    layer = adapter.base_layer
    if isinstance(layer, CompressedLayer):
        return
    plain = any(kind.startswith("peft.tuners.lora.") for kind in _kinds(adapter)) and not any(
        getattr(adapter, "use_dora", {}).values()
    )
    if isinstance(layer, nn.Embedding) or (is_transposed(layer) and not plain):
        raise ArgumentError(
            f"{name} is inside {words}, which reads the weight of {kind_of(layer)}; merge the adapters first "
            "(merge_and_unload()), or leave the layer out with ignore="
        )


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run what ``torch.compile`` compiled without compilation, so that hooks on modules inside are called."""
    compiled = any(
        _COMPILED in _kinds(module) or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def notice_replacement(wrapper: Any) -> None:
    """Tell a wrapper of ``torch.compile`` or an adapter of PEFT that the layer inside it was replaced."""
    kinds = set(_kinds(wrapper))
    if _COMPILED in kinds:
        wrapper._initialize()  # its forward is bound to the old layer
    if _ADAPTER in kinds:
        wrapper.merge = MethodType(_merge_into_dense, wrapper)


def _merge_into_dense(adapter: Any, *arguments: Any, **named: Any) -> Any:
    """``merge`` of an adapter whose layer is compressed: the layer becomes dense first.

    Adapters are merged by changing ``base_layer.weight`` in place. The weight of a compressed layer is computed, so the
    change would be lost.
    """
    if isinstance(adapter.base_layer, CompressedLayer):
        adapter.base_layer = adapter.base_layer.to_dense()
    del adapter.merge
    return adapter.merge(*arguments, **named)
