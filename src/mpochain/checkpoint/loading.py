"""Reading a checkpoint: names, shapes and sizes are checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import nn

from mpochain.checkpoint.configuration import CONFIG, Configuration, digest, read_configuration
from mpochain.errors import ArgumentError, CheckpointError, MissingDependencyError, MPOError
from mpochain.nn import CompressedLayer, RowEmbedding
from mpochain.nn.dense import dense_shape
from mpochain.nn.layer import layer_of
from mpochain.surgery.replacement import replace_layers

__all__ = ["load"]

# The largest numbers of a model's configuration that are believed: whatever it is, and where it makes lists or tables.
_LARGEST = 1 << 24
_MOST = {"num_labels": 1 << 16, "position": 1 << 20, "n_ctx": 1 << 20}


def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a model written by :func:`save`. The dense weights of compressed layers are never allocated.

    Args:
        folder: of the checkpoint.
        model: the uncompressed architecture, best built under ``torch.device("meta")``; it is changed into the result.
            Not needed for models of transformers.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file that is missing, damaged, of another version or model, or hostile, naming the field.
        MissingDependencyError: a model of transformers, which is not installed.

    Example:
        >>> import torch
        >>> from mpochain.checkpoint import save
        >>> from mpochain.nn import MPOLinear
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(MPOLinear(8, 8, max_bond=2), nn.ReLU())
        >>> with torch.device("meta"):
        ...     architecture = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        >>> with TemporaryDirectory() as folder:
        ...     loaded = load(save(model, folder), architecture)
        >>> torch.equal(loaded[0].core_0_0, model[0].core_0_0)
        True
    """
    folder = Path(folder)
    config = read_configuration(folder / CONFIG)
    file = folder / config.tensors
    try:
        if digest(file) != config.sha256:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {CONFIG}")
        with safetensors.safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if model is None:
                # A sketch that takes no memory first: some models make buffers, as masks of all positions, that a
                # false number in the configuration would make as large as it likes.
                sketch = _architecture(config, len(names), folder, buffers="meta")
                _replace(sketch, config.layers, folder)
                _compare(sketch, stored, names, config.tied, file)
                model = _architecture(config, len(names), folder, buffers="cpu")
            _replace(model, config.layers, folder)
            _compare(model, stored, names, config.tied, file)
            _fill(model, stored, names, config.tied)
            _require_indices(model, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return model.eval()


def _architecture(config: Configuration, tensors: int, folder: Path, *, buffers: Literal["meta", "cpu"]) -> nn.Module:
    """The model of transformers that the configuration names, its parameters without numbers.

    Its buffers have some on the cpu: those that the model makes and stores nowhere.
    """
    if config.model is None:
        raise CheckpointError(f"{folder} does not say which model it is of; give load() the architecture")
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingDependencyError(
            "a model of transformers needs transformers and accelerate; install mpochain[hf]"
        ) from error
    kind: Any = getattr(transformers, config.model.name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise CheckpointError(f"{folder / CONFIG}: model.name: transformers has no model {config.model.name!r}")
    _check_sizes(config.model.config, tensors, f"{folder / CONFIG}: model.config")
    try:
        with torch.device("meta") if buffers == "meta" else init_empty_weights(include_buffers=False):
            settings: Any = kind.config_class
            return kind(settings.from_dict(config.model.config))
    except Exception as error:  # whatever a hostile configuration makes transformers raise
        raise CheckpointError(f"{folder / CONFIG}: model.config: {error}") from error


def _check_sizes(config: Any, tensors: int, where: str) -> None:
    """Refuse numbers that would make an architecture too large to build, before any of it is built."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key.endswith("implementation") and isinstance(value, str) and not value.isidentifier():
                # transformers would fetch code from there.
                raise CheckpointError(f"{where}.{key} is {value!r}, which is no name of an implementation")
            number = isinstance(value, int) and not isinstance(value, bool)
            most = next((limit for part, limit in _MOST.items() if part in key), _LARGEST)
            if "layer" in key:
                most = tensors  # each has some
            if number and value > most:
                raise CheckpointError(f"{where}.{key} is {value:,}, more than the {most:,} that are believed")
            _check_sizes(value, tensors, f"{where}.{key}")
    elif isinstance(config, list):
        for k, value in enumerate(config):
            _check_sizes(value, tensors, f"{where}.{k}")


def _replace(model: nn.Module, layers: Mapping[str, Any], folder: Path) -> None:
    where = folder / CONFIG
    modules = dict(model.named_modules())
    for name, description in layers.items():
        old = modules.get(name) if name else None
        if old is None:
            raise CheckpointError(f"{where}: layers: the model has no layer {name!r}")
        try:
            layer = layer_of(description, _shape(old), f"layers.{name}")
            if isinstance(layer, RowEmbedding) is not isinstance(old, RowEmbedding | nn.Embedding):
                raise ArgumentError(f"layers.{name} is a {type(layer).__name__} in place of a {type(old).__name__}")
        except MPOError as error:
            raise CheckpointError(f"{where}: {error}") from error
        replace_layers(model, {old: layer})


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, CompressedLayer):
        return layer.shape
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    shape = dense_shape(layer)
    if shape is None:
        raise ArgumentError(f"a {type(layer).__name__} cannot have been compressed")
    return shape


def _compare(model: nn.Module, stored: Any, names: set[str], tied: Mapping[str, str], file: Path) -> None:
    """Refuse a file whose names and shapes are not those of the model, before any of its numbers are read."""
    wanted = model.state_dict()
    expected = set(wanted) - set(tied)
    if names != expected:
        odd = sorted(names ^ expected)[:3]
        raise CheckpointError(f"{file} does not fit its model: missing or unexpected tensors {', '.join(odd)}")
    for name, target in tied.items():
        if name not in wanted or target not in names:
            raise CheckpointError(f"{file.parent / CONFIG}: tied: {name!r} and {target!r} are not tensors of the model")
        if wanted[name].shape != wanted[target].shape:
            raise CheckpointError(
                f"{file.parent / CONFIG}: tied: {name!r} has shape {tuple(wanted[name].shape)}, and {target!r} "
                f"{tuple(wanted[target].shape)}; one tensor cannot be both"
            )
    for name in sorted(names):
        shape = tuple(stored.get_slice(name).get_shape())
        if shape != tuple(wanted[name].shape):
            raise CheckpointError(f"{file}: {name} has shape {shape}, expected {tuple(wanted[name].shape)}")


def _fill(model: nn.Module, stored: Any, names: set[str], tied: Mapping[str, str]) -> None:
    """Give a model the numbers of a file that fits it."""
    values = {name: stored.get_tensor(name) for name in names}
    model.load_state_dict({**values, **{name: values[target] for name, target in tied.items()}}, assign=True)
    for name, target in tied.items():
        owner, _, attribute = target.rpartition(".")
        shared = getattr(model.get_submodule(owner), attribute)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, shared)


def _require_indices(model: nn.Module, file: Path) -> None:
    """Refuse index buffers that would read outside of what they index, or leave a part of it out."""
    for prefix, layer in model.named_modules():
        if isinstance(layer, CompressedLayer):
            for name, index in layer.indices().items():
                try:
                    index.require_valid(f"{prefix}.{name}")
                except ArgumentError as error:
                    raise CheckpointError(f"{file}: {error}") from error
