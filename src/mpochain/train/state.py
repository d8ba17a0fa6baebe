"""Training state in one safetensors file, to resume bit for bit: parameters, optimiser, generator and record.

The file contains no pickle. It is written under another name and renamed, so a kill at any moment leaves either the old
file or the new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpochain.errors import CheckpointError
from mpochain.system.files import write_bytes

__all__ = ["load_state", "read_record", "save_state"]

_FORMAT = {"format": "mpochain-training", "version": "1"}

# State that AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by name, tied tensors once."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    tensors = {}
    for name, value in model.state_dict().items():
        memory = (value.data_ptr(), value.shape, value.stride())
        if value.numel() == 0 or memory not in seen:
            seen.add(memory)
            tensors[f"model.{name}"] = value
    return tensors


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, record: dict[str, Any]
) -> None:
    """Write parameters, optimiser moments, the generator of the batches and ``record`` (JSON) to ``path``.

    Raises:
        OutputError: the file cannot be written; an older file stays intact.
    """
    tensors = {name: value.contiguous() for name, value in _model_tensors(model).items()}
    for name, parameter in model.named_parameters():
        # Frozen parameters have no moments.
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    tensors["generator"] = generator.get_state()
    write_bytes(path, save(tensors, metadata=_FORMAT | {"record": json.dumps(record)}))


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON record of a state file, without its tensors.

    Raises:
        CheckpointError: the file is not a readable training state.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
            raise CheckpointError(f"{path} is not a training state of version {_FORMAT['version']}: {metadata}")
        record = json.loads(metadata["record"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a training state ({error}); remove it to start again"
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: the record is not a JSON object; remove the file to start again")
    return record


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """Restore a state written by :func:`save_state`, and return its record.

    Everything is checked before anything is changed, so a bad file leaves model and optimiser as they were.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model.
    """
    record = read_record(path)
    model_tensors = _model_tensors(model)
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model_tensors.items()}
    moments: dict[str, tuple[nn.Parameter, str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in _MOMENTS:
                moments[f"optimizer.{key}.{name}"] = parameter, key
                counter = key == "step"
                shape, dtype = ((), torch.float32) if counter else (tuple(parameter.shape), parameter.dtype)
                expected[f"optimizer.{key}.{name}"] = shape, dtype
    state = generator.get_state()
    expected["generator"] = tuple(state.shape), state.dtype
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if names != set(expected):
            raise CheckpointError(
                f"{path} belongs to another model: missing {sorted(set(expected) - names)[:3]}, "
                f"unexpected {sorted(names - set(expected))[:3]}; use the model of that run, or remove the file to "
                "start again"
            )
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise CheckpointError(
                f"{path}: {name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype}; use the model "
                "of that run, or remove the file to start again"
            )
    with torch.no_grad():
        for name, value in model_tensors.items():
            value.copy_(tensors[name])
        for name, (parameter, key) in moments.items():
            # Fused optimisers require the memory layout of the parameter.
            moment = tensors[name] if key == "step" else torch.empty_like(parameter).copy_(tensors[name])
            optimizer.state[parameter][key] = moment
    generator.set_state(tensors["generator"])
    return record
