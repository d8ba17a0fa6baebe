"""Detection of traced calls, and compressed layers as leaves of ``torch.fx`` graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from mpochain.errors import ArgumentError

__all__ = ["is_proxy", "is_recorded", "is_traced", "leaf_of_graph"]


def is_traced() -> bool:
    """True while a graph is recorded or inside a function transform: values must not be read, nor sizes be fixed.

    A graph is recorded by ``torch.compile``, ``torch.export`` and ``torch.jit.trace``.
    """
    return bool(torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or is_recorded())


def is_recorded() -> bool:
    """True while ``torch.jit.trace`` records a graph."""
    return torch._C._get_tracing_state() is not None


def is_proxy(x: object) -> bool:
    """Whether ``torch.fx`` records a graph, so that this stands for a tensor."""
    return isinstance(x, Proxy)


def leaf_of_graph(layer: nn.Module, x: Any) -> Any:
    """The call of a layer as one node of the graph that ``torch.fx`` records, as for the layers of ``torch.nn``.

    Args:
        layer: a layer of the traced model.
        x: the ``Proxy`` of its input.

    Raises:
        ArgumentError: the layer is itself the traced model.
    """
    try:
        name = x.tracer.path_of_module(layer)
    except NameError:
        name = ""
    if not name:
        raise ArgumentError(
            f"torch.fx records a {type(layer).__name__} as one call, so it cannot be the traced model itself; trace a "
            "model that contains it, such as nn.Sequential(layer)"
        )
    return x.tracer.create_proxy("call_module", name, (x,), {})
