"""Sizes of a model from its configuration alone: layers, arithmetic and memory of a call, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import head_counts
from mpochain.compression.blocks.stacks import largest_stack
from mpochain.compression.selection import dense_layers
from mpochain.compression.target import Target
from mpochain.errors import ShapeError
from mpochain.language import require_window
from mpochain.language.empty import empty_language_model
from mpochain.nn.dense import dense_shape
from mpochain.surgery.calls import logits_of, without_cache

__all__ = ["ModelSizes", "read_sizes"]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a dense model, and of one call of it with a window of tokens.

    Attributes:
        model: the model, whose tensors have shapes but no numbers.
        layers: linear layers that are compressed, by name.
        parameters: number of parameters.
        model_bytes: bytes of the parameters in the type of their file.
        layer_parameters: parameters of ``layers``.
        block_bytes: bytes of the largest block.
        blocks: number of blocks.
        hidden: width of the hidden states.
        window: tokens of the call.
        flops: FLOPs of the call, forward alone.
        element_bytes: bytes of a parameter in the type of its file.
        saved_bytes: what autograd saves of the call, in float32.
        logits_bytes: the logits, in float32.
    """

    model: nn.Module
    layers: Mapping[str, Target]
    parameters: int
    model_bytes: int
    layer_parameters: int
    block_bytes: int
    blocks: int
    hidden: int
    window: int
    flops: float
    element_bytes: int
    saved_bytes: int
    logits_bytes: int


def read_sizes(source: str | Path, window: int, dtype: str = "auto") -> ModelSizes:
    """Sizes of the model that a folder, or a name on the hub, describes; only its ``config.json`` is read.

    Args:
        source: folder with a ``config.json``, or a name on the hub.
        window: tokens of a call.
        dtype: type of the parameters, see :func:`mpochain.language.load_language_model`.

    Raises:
        CheckpointError: there is no configuration, or it describes no causal language model.
        ShapeError: it has no linear layers.
        ArgumentError: it has no blocks, the dtype is unknown, or the window is longer than the model's context.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    build, stored = empty_language_model(source, dtype=dtype)
    with torch.device("meta"):
        model: Any = build().to(stored)
    with FakeTensorMode() as mode:  # a call needs values of masks, which the meta device does not have
        called: Any = build()
    require_window(model, window)
    layers = dense_layers(model)
    if not layers:
        raise ShapeError(f"{type(model).__name__} has no linear layers to compress")
    blocks = largest_stack(model, set(layers.values()), "a plan of a run").blocks
    with mode, without_cache(called):
        tokens = torch.zeros(1, window, dtype=torch.long)
        with _saved(called.train()) as saved:
            logits = logits_of(called(tokens))
        with FlopCounterMode(display=False) as counter:
            called.eval()(tokens)
    heads = head_counts(model)
    hidden = int(model.get_input_embeddings().embedding_dim)
    # The attention of a CPU is not counted: scores and values, of all positions.
    attention = 4.0 * window**2 * hidden * len(blocks) if heads is not None else 0.0
    return ModelSizes(
        model,
        {name: _target(name, module) for name, module in layers.items()},
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters()) * stored.itemsize,
        sum(parameter.numel() for module in layers.values() for parameter in module.parameters()),
        max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks) * stored.itemsize,
        len(blocks),
        hidden,
        window,
        counter.get_total_flops() + attention,
        stored.itemsize,
        sum(tensor.untyped_storage().nbytes() for tensor in saved.values()),
        4 * logits.numel(),
    )


def _target(name: str, module: nn.Module) -> Target:
    shape = dense_shape(module)
    assert shape is not None
    return Target(name, module, torch.empty(shape, device="meta"), None)


@contextmanager
def _saved(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Gather what autograd keeps for a backward pass; what several operations keep is there once."""
    kept: dict[int, Tensor] = {}
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in parameters:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
