"""Description of a model for the configuration of its checkpoint: compressed layers, ties, separate experts, type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mpochain.checkpoint.configuration import CONFIG, METHOD, VERSION
from mpochain.checkpoint.elements import require_storable
from mpochain.checkpoint.overlaps import require_no_overlaps
from mpochain.errors import ArgumentError
from mpochain.nn import LAYERS, AdaptedLinear, CompressedLayer, SeparateExperts
from mpochain.surgery.finding import compressed_layers
from mpochain.system.files import write_bytes
from mpochain.wording import kind_of

__all__ = ["NO_FILE", "dtype_of", "entries_of", "quantization_of", "separated", "write_configuration"]

# The file of tensors that the configuration names for transformers. There is none: transformers without this library
# then stops and shows the name, where it would otherwise warn and return random weights.
NO_FILE = "import-mpochain-to-read-this-folder.safetensors"


def quantization_of(
    model: nn.Module,
    layers: Mapping[str, Any],
    tied: Mapping[str, str],
    sha256: str,
    *,
    arguments: Mapping[str, bool] | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """The field ``quantization_config`` of a Hugging Face model, see :class:`mpochain.checkpoint.Description`."""
    experts = separated(model)
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "sha256": sha256,
        **({"sharded": True} if sharded else {}),
        "layers": dict(layers),
        "tied": dict(tied),
        **({"experts": experts} if experts else {}),
        **({"arguments": dict(arguments)} if arguments else {}),
    }


def write_configuration(
    folder: Path, config: Mapping[str, Any], name: str, dtype: str | None, description: Mapping[str, Any]
) -> None:
    """Write ``config.json`` of a Hugging Face model.

    Args:
        folder: the folder.
        config: the configuration of transformers, as JSON-ready data.
        name: name of the model's class.
        dtype: name of the model's element type; None to keep the one of ``config``.
        description: the field ``quantization_config``.

    Raises:
        OutputError: the file cannot be written.
    """
    fields = {
        **config,
        "architectures": [name],
        **({} if dtype is None else {"dtype": dtype}),
        "transformers_weights": NO_FILE,
        "quantization_config": dict(description),
    }
    write_bytes(folder / CONFIG, (json.dumps(fields, indent=1) + "\n").encode())


def separated(model: nn.Module) -> list[str]:
    """Names of the modules whose fused experts are separate layers."""
    return [name for name, module in model.named_modules() if isinstance(module, SeparateExperts)]


def dtype_of(model: nn.Module) -> str | None:
    """Name of the element type of a model, which is that of its first floating-point parameter.

    Example:
        >>> dtype_of(nn.Linear(2, 2).bfloat16())
        'bfloat16'
    """
    floats = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    dtype: torch.dtype | None = next(floats, None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def entries_of(model: nn.Module) -> dict[str, Any]:
    """The entries of all compressed layers by name, after a check that a checkpoint can hold the model.

    Raises:
        ArgumentError: a layer that :func:`mpochain.load` could not load, or a tensor that no file holds.
    """
    adapted = next((name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)), None)
    if adapted is not None:
        raise ArgumentError(
            f"{adapted} has adapters, which are no part of a checkpoint; merge them first "
            "(mpochain.train.merge_adapters), or save them alone (mpochain.train.save_adapter)"
        )
    require_storable(model)
    require_no_overlaps(model)
    return {name: _entry(layer, name) for name, layer in compressed_layers(model).items()}


def _entry(layer: CompressedLayer, name: str) -> dict[str, Any]:
    """The entry of a layer as JSON-ready data."""
    known = LAYERS.get(layer.kind)
    if known is None or not isinstance(layer, known):
        raise ArgumentError(
            f"{name} is {kind_of(layer)} of kind {layer.kind!r}, which mpochain.load does not know; register "
            f"it first: mpochain.nn.LAYERS[{layer.kind!r}] = {type(layer).__name__}"
        )
    if is_parametrized(layer):
        raise ArgumentError(
            f"{name} has parametrisations, which a checkpoint does not hold; call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if type(layer) is not known:
        raise ArgumentError(
            f"{name} is {kind_of(layer)}, which would be loaded as {known.__name__} without what it changes; "
            f"give it a kind of its own and register that: mpochain.nn.LAYERS['...'] = {type(layer).__name__}"
        )
    entry = layer.entry()
    if entry.kind != layer.kind:
        raise ArgumentError(
            f"{name} is {kind_of(layer)} of kind {layer.kind!r}, but its entry is of kind {entry.kind!r} and "
            f"would be loaded as another layer; give {type(layer).__name__} an Entry of its own, and entry() and "
            "from_entry() for it"
        )
    wanted, held = known.from_entry(entry).state_dict(), layer.state_dict()
    odd = wanted.keys() ^ held.keys() or {key for key in wanted if _differ(wanted[key], held[key])}
    if odd:
        raise ArgumentError(
            f"{name} holds other tensors than {kind_of(layer)} has, such as {min(odd)}, since a quantiser, an adapter "
            "or a parametrisation replaced something inside; save the model before, merge adapters first "
            "(merge_and_unload()), or save the changed model with the tool that changed it"
        )
    return entry.model_dump(mode="json")


def _differ(wanted: Tensor, held: Tensor) -> bool:
    """Whether a tensor has another shape, or integers where floating-point numbers belong."""
    return wanted.shape != held.shape or wanted.is_floating_point() is not held.is_floating_point()
