"""Folders of adapters: the chains alone, with the hash of the model that they belong to."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from mpochain.errors import ArgumentError, CheckpointError, MPOError
from mpochain.nn.entry import SpecEntry
from mpochain.surgery.fingerprint import fingerprint_of_data
from mpochain.system.files import write_bytes
from mpochain.system.folders import read_unchanged, replaced_together
from mpochain.system.paths import as_path
from mpochain.system.reading import read_bytes
from mpochain.train.adapters import adapt, adapted_layers
from mpochain.validation import Validated, parsed, problems

__all__ = ["load_adapter", "save_adapter"]

_CONFIG, _TENSORS = "adapter.json", "adapter.safetensors"
_LONGEST_CONFIG, _LONGEST = 1 << 26, 1 << 40


class _Description(Validated):
    """Content of the configuration of an adapter."""

    format: Literal["mpochain-adapter"]
    version: Literal[1]
    base: str
    sha256: str
    layers: dict[str, SpecEntry]


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the chains of a model's adapters, without the model: some kilobytes.

    Args:
        model: a model of :func:`mpochain.train.adapt`.
        folder: created if needed; an adapter in it is replaced in one step.

    Returns:
        The folder.

    Raises:
        ArgumentError: the model has no adapters.
        OutputError: the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(nn.Linear(16, 64))
        >>> _ = adapt(model, bond=2)
        >>> with TemporaryDirectory() as parent:
        ...     sorted(file.name for file in save_adapter(model, f"{parent}/adapter").glob("adapter.*"))
        ['adapter.json', 'adapter.safetensors']
    """
    layers = adapted_layers(model)
    if not layers:
        raise ArgumentError(f"{type(model).__name__} has no adapters to save; add them with mpochain.train.adapt")
    place = as_path(folder, "folder")
    tensors = {
        f"{name}.{own}": value.detach().cpu().contiguous()
        for name, layer in layers.items()
        for own, value in layer.delta.named_parameters()
    }
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    description = _Description(
        format="mpochain-adapter",
        version=1,
        base=_base_hash(model),
        sha256=sha256(data).hexdigest(),
        layers={name: SpecEntry.of(layer.delta.specs[0]) for name, layer in layers.items()},
    )
    with replaced_together(place) as new:
        write_bytes(new / _TENSORS, data)
        write_bytes(new / _CONFIG, (json.dumps(description.model_dump(), indent=1) + "\n").encode())
    return place


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a folder beside the layers of the model that they were trained with, in place.

    Args:
        model: that model, without adapters.
        folder: folder of :func:`save_adapter`.

    Returns:
        The model, everything but the chains frozen.

    Raises:
        CheckpointError: the folder holds no adapter, it is damaged, or of another model. The model does not change.
        ArgumentError: the model has adapters already.
    """
    place = as_path(folder, "folder")
    description, tensors = read_unchanged(place, lambda: _read(place))
    if description.base != _base_hash(model):
        raise CheckpointError(
            f"the adapter in {place} is of another base model: its hash is {description.base[:16]} and that of this "
            f"model {_base_hash(model)[:16]}; load the model that it was trained with"
        )
    try:
        specs = {name: entry.spec() for name, entry in description.layers.items()}
        expected = {
            f"{name}.core_0_{k}": shape for name, spec in specs.items() for k, shape in enumerate(spec.core_shapes)
        }
        if {name: tuple(value.shape) for name, value in tensors.items()} != expected:
            raise CheckpointError(f"{place / _TENSORS} does not hold the cores that {_CONFIG} describes")
        layers = adapt(model, specs=specs)
    except CheckpointError:
        raise
    except MPOError as error:
        raise CheckpointError(f"{place / _CONFIG}: {error}") from error
    with torch.no_grad():
        for name, layer in layers.items():
            for own, value in layer.delta.named_parameters():
                value.copy_(tensors[f"{name}.{own}"])
    return model


def _read(folder: Path) -> tuple[_Description, dict[str, torch.Tensor]]:
    file = folder / _CONFIG
    try:
        description = parsed(_Description, json.loads(read_bytes(file, _LONGEST_CONFIG).decode()))
        data = read_bytes(folder / _TENSORS, _LONGEST)
    except ValidationError as error:
        raise CheckpointError(f"{file}: {'; '.join(problems(error, _Description))}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no adapter that can be read: {error}") from error
    if sha256(data).hexdigest() != description.sha256:
        raise CheckpointError(f"{folder / _TENSORS} is damaged: it does not have the SHA-256 that {_CONFIG} states")
    return description, safetensors.torch.load(data)


def _base_hash(model: nn.Module) -> str:
    """Hash of the model without its adapters: names, shapes and numbers of its parameters and buffers."""
    adapted = adapted_layers(model)
    deltas = tuple(f"{name}.delta." for name in adapted)
    bases = {f"{name}.base.": f"{name}." for name in adapted}
    tensors = {}
    for name, value in model.state_dict().items():
        if name.startswith(deltas):
            continue
        base = next((prefix for prefix in bases if name.startswith(prefix)), None)
        tensors[name if base is None else bases[base] + name.removeprefix(base)] = value
    return fingerprint_of_data([[name, tensors[name]] for name in sorted(tensors)])
