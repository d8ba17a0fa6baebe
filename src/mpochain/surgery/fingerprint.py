"""Hashes of a model's weights and of batches of data, which tell one run from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpochain.distributed import full

__all__ = ["fingerprint", "fingerprint_of_data"]


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, including their names, shapes and dtypes.

    A model that is sharded has the hash of the plain one; all processes must call this.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = fingerprint(model)
        >>> model.weight.data += 1
        >>> fingerprint(model) == before
        False
    """
    digest = sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):  # extra state of a module
            _add(digest, {name: value})
            continue
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes_of(full(value)))
    return digest.hexdigest()


def fingerprint_of_data(batches: Iterable[Any]) -> str:
    """Return the SHA-256 of batches of tensors, in order, with their shapes, dtypes and names.

    Args:
        batches: tensors, arrays, numbers and text, also nested in lists and mappings; read once.

    Example:
        >>> fingerprint_of_data([torch.zeros(2)]) == fingerprint_of_data([{"x": torch.zeros(2)}])
        False
    """
    digest = sha256()
    for batch in batches:
        _add(digest, batch)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes_of(value))
    elif isinstance(value, np.ndarray):
        _add(digest, torch.from_numpy(np.ascontiguousarray(value)))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, item in value.items():
            _add(digest, str(key))
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif hasattr(value, "__dict__"):
        digest.update(type(value).__qualname__.encode())
        _add(digest, vars(value))
    else:
        digest.update(repr(value).encode())


def _bytes_of(value: Tensor) -> memoryview:
    return value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
