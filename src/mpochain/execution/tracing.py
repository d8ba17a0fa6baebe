"""Detection of traced calls, and compressed layers as leaves of ``torch.fx`` graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from mpochain.errors import ArgumentError

__all__ = ["for_other_programs", "is_for_other_programs", "is_proxy", "is_recorded", "is_traced", "leaf_of_graph"]

_FOR_OTHERS = ContextVar("for_other_programs", default=False)


@contextmanager
def for_other_programs() -> Iterator[None]:
    """Context in which recorded graphs are for a file that another program runs, such as one of ONNX.

    Chains are then swept core by core, since what another program computes from parameters alone it may compute once
    and store: the merge of all cores is the dense matrix. And codes are unpacked by integer arithmetic, as views of
    other element types are known to torch alone.

    Example:
        >>> with for_other_programs():
        ...     is_for_other_programs()
        True
        >>> is_for_other_programs()
        False
    """
    token = _FOR_OTHERS.set(True)
    try:
        yield
    finally:
        _FOR_OTHERS.reset(token)


def is_for_other_programs() -> bool:
    """Whether the graph that is recorded is for a file that another program runs."""
    # Graphs that torch.compile records are for torch, and it cannot record the question.
    return not torch.compiler.is_dynamo_compiling() and _FOR_OTHERS.get()


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
