"""The whole state of a run in one safetensors file: what is needed to go on to the bit. No pickle.

Written to a neighbour and renamed, so a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpochain.atomic import write_bytes
from mpochain.errors import CheckpointError

__all__ = ["load_state", "save_state"]

_FORMAT = {"format": "mpochain-training", "version": "1"}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            yield f"optimizer.{key}.{name}", value


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, record: dict[str, Any]
) -> None:
    """Write parameters, optimiser moments, the batch generator and ``record`` (JSON) to ``path``."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    tensors |= dict(_optimizer_tensors(model, optimizer))
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
    wanted = {f"model.{name}": value for name, value in model.state_dict().items()}
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        found = {name for name in names if name.startswith("model.")}
        if found != set(wanted):
            raise CheckpointError(
                f"{path} is of another model: missing {sorted(set(wanted) - found)[:3]}, "
                f"unexpected {sorted(found - set(wanted))[:3]}"
            )
        for name, value in wanted.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(value.shape):
                raise CheckpointError(f"{path}: {name} has shape {shape}, the model needs {tuple(value.shape)}")
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(file.get_tensor(name))
            for name, parameter in model.named_parameters():
                suffix = f".{name}"
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    full = f"optimizer.{key}{suffix}"
                    if full not in names:
                        raise CheckpointError(f"{path}: {full} is missing; remove the file to start anew")
                    optimizer.state[parameter][key] = file.get_tensor(full)
        if "generator" not in names:
            raise CheckpointError(f"{path}: the batch generator's state is missing; remove the file to start anew")
        generator.set_state(file.get_tensor("generator"))
    return record
