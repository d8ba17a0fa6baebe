"""The whole state of a run in one safetensors file: what is needed to go on to the bit. No pickle.

Written to a neighbour and renamed, so a kill at any moment leaves the old file or the new one.
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

# What AdamW keeps for each parameter it has updated.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model once: tied parameters are one."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    tensors = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        if value.numel() == 0 or place not in seen:
            seen.add(place)
            tensors[f"model.{name}"] = value
    return tensors


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, record: dict[str, Any]
) -> None:
    """Write parameters, optimiser moments, the batch generator and ``record`` (JSON) to ``path``."""
    tensors = {name: value.contiguous() for name, value in _model_tensors(model).items()}
    for name, parameter in model.named_parameters():
        # Frozen parameters have no moments.
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    tensors["generator"] = generator.get_state()
    write_bytes(path, save(tensors, metadata=_FORMAT | {"record": json.dumps(record)}))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a state file, without its tensors.

    Raises:
        CheckpointError: not a readable state file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if {key: metadata.get(key) for key in _FORMAT} != _FORMAT:
            raise CheckpointError(f"{path} is not a training state of version {_FORMAT['version']}: {metadata}")
        record = json.loads(metadata["record"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a training state ({error}); remove it to start anew"
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: the record is no JSON object; remove the file to start anew")
    return record


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    """Restore what :func:`save_state` wrote, and return its record.

    Raises:
        CheckpointError: a damaged file, or one of another model.
    """
    record = read_record(path)
    model_tensors = _model_tensors(model)
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in model_tensors.items()}
    moments: dict[str, tuple[nn.Parameter, str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in _MOMENTS:
                moments[f"optimizer.{key}.{name}"] = parameter, key
                counter = key == "step"
                shape, dtype = ((), torch.float32) if counter else (tuple(parameter.shape), parameter.dtype)
                wanted[f"optimizer.{key}.{name}"] = shape, dtype
    state = generator.get_state()
    wanted["generator"] = tuple(state.shape), state.dtype
    # All of it is checked before any of it is used, so that a bad file leaves the model as it was.
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if names != set(wanted):
            raise CheckpointError(
                f"{path} is of another model: missing {sorted(set(wanted) - names)[:3]}, "
                f"unexpected {sorted(names - set(wanted))[:3]}"
            )
        found = {name: file.get_tensor(name) for name in wanted}
    for name, (shape, dtype) in wanted.items():
        got = found[name]
        if (tuple(got.shape), got.dtype) != (shape, dtype):
            raise CheckpointError(f"{path}: {name} is {tuple(got.shape)} {got.dtype}, the run needs {shape} {dtype}")
    with torch.no_grad():
        for name, value in model_tensors.items():
            value.copy_(found[name])
        for full, (parameter, key) in moments.items():
            # In the memory layout of the parameter, which fused optimisers take for granted.
            moment = found[full] if key == "step" else torch.empty_like(parameter).copy_(found[full])
            optimizer.state[parameter][key] = moment
    generator.set_state(found["generator"])
    return record
