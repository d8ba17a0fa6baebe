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
    "adapter_parts",
    "notice_replacement",
    "plain_names",
    "require_replaceable_in",
    "uncompiled",
    "unwrapped",
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


def plain_names(model: nn.Module) -> dict[str, str]:
    """The names of all modules of a model, mapped to the names that they have without transparent wrappers.

    A wrapper and the module inside it have the same plain name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model[0] = torch.compile(model[0])
        >>> plain_names(model)
        {'': '', '0': '0', '0._orig_mod': '0'}
    """
    plain: dict[str, str] = {}

    def walk(module: nn.Module, name: str, plain_name: str) -> None:
        plain[name] = plain_name
        inside = _inside(module)
        for key, child in module._modules.items():
            if child is not None:
                longer = plain_name if key == inside else f"{plain_name}.{key}" if plain_name else key
                walk(child, f"{name}.{key}" if name else key, longer)

    walk(model, "", "")
    return plain


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
