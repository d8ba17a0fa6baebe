"""Summary of a checkpoint from its configuration and safetensors header, without loading tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from mpochain.checkpoint.configuration import CONFIG, read_configuration
from mpochain.checkpoint.elements import DTYPES
from mpochain.checkpoint.present_names import present_names
from mpochain.checkpoint.stored import opened_tensors
from mpochain.errors import CheckpointError, MPOError
from mpochain.nn import CompressedLayer
from mpochain.nn.kinds import layer_of
from mpochain.system.folders import read_unchanged
from mpochain.system.paths import as_path

__all__ = ["Contents", "StoredLayer", "contents"]


@dataclass(frozen=True)
class StoredLayer:
    """A compressed layer of a checkpoint.

    Attributes:
        name: name in the model.
        shape: ``(out_features, in_features)``.
        form: short description, see :meth:`mpochain.nn.CompressedLayer.form`.
        parameters: number of elements stored for the weight.
        bytes: size of all tensors stored for the weight.
    """

    name: str
    shape: tuple[int, int]
    form: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Contents:
    """Summary of a checkpoint.

    Attributes:
        model: class name of a Hugging Face model; None for other models.
        layers: the compressed layers.
        parameters: number of floating-point elements of the whole model, and of integers that compressed layers store
            for weights, such as codes; tied tensors count once.
        bytes: size of all tensors.
        dtypes: element types of the tensors, by their safetensors names.
        intact: True if the file of tensors has the hash that the configuration states, and so have several such files.
    """

    model: str | None
    layers: tuple[StoredLayer, ...]
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    intact: bool

    @property
    def dense_parameters(self) -> int:
        """Number of parameters if all layers were dense."""
        return self.parameters + sum(layer.shape[0] * layer.shape[1] - layer.parameters for layer in self.layers)


def contents(folder: Path | str) -> Contents:
    """Summarise a checkpoint without loading it.

    Args:
        folder: a folder written by :func:`mpochain.save`.

    Raises:
        CheckpointError: a file is missing, damaged or of another version.

    Example:
        >>> from mpochain.checkpoint import save
        >>> from mpochain.nn import MPOLinear
        >>> from tempfile import TemporaryDirectory
        >>> from torch import nn
        >>> with TemporaryDirectory() as folder:
        ...     checkpoint = contents(save(nn.Sequential(MPOLinear(8, 6, max_bond=2, bias=False)), folder))
        >>> layer = checkpoint.layers[0]
        >>> layer.name, layer.shape, checkpoint.parameters == layer.parameters
        ('0', (6, 8), True)
    """
    folder = as_path(folder, "folder")
    return read_unchanged(folder, lambda: _contents(folder))


def _contents(folder: Path) -> Contents:
    config = read_configuration(folder / CONFIG)
    held: dict[str, tuple[str, int]] = {}
    with opened_tensors(folder, config, damaged=True) as stored:
        for name in sorted(stored.keys()):
            part = stored.get_slice(name)
            held[name] = part.get_dtype(), math.prod(part.get_shape())

    layers = []
    # Floating-point numbers outside of the weights of layers.
    others = {name: count for name, (dtype, count) in held.items() if "F" in dtype and name not in config.buffers}
    for name, description in config.layers.items():
        try:
            layer = layer_of(description, None, f"layers.{name}")
        except MPOError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        own = {key.removeprefix(f"{name}."): value for key, value in held.items() if key.startswith(f"{name}.")}
        weight = {key for key, (_, count) in own.items() if count and key.rpartition(".")[2] != "bias"}
        if any(key.startswith(f"{name}.") for key in config.tied) and not weight:
            continue  # a head tied to another layer, and counted there
        for key in weight:
            others.pop(f"{name}.{key}", None)
        present = present_names(own, layer)
        numbers = _typed(layer, {present.get(key, key): dtype for key, (dtype, _) in own.items()}).numbers()
        layers.append(StoredLayer(name, layer.shape, layer.form(), numbers.parameters, numbers.bytes))
    return Contents(
        config.model.name if config.model is not None else None,
        tuple(layers),
        sum(others.values()) + sum(layer.parameters for layer in layers),
        sum(count * DTYPES.get(dtype, torch.float32).itemsize for dtype, count in held.values()),
        tuple(sorted({dtype for dtype, _ in held.values()})),
        stored.intact,
    )


def _typed(layer: CompressedLayer, dtypes: dict[str, str]) -> CompressedLayer:
    """Give a layer on the meta device the element types of a file, so that ``numbers()`` returns the stored bytes."""
    tensors = {
        name: torch.empty(tensor.shape, dtype=DTYPES.get(dtypes.get(name, ""), tensor.dtype), device="meta")
        for name, tensor in layer.state_dict().items()
    }
    layer.requires_grad_(False)  # integers have no gradients
    layer.load_state_dict(tensors, assign=True)
    return layer
