"""Loading of checkpoints; names, shapes and sizes are validated before any memory is allocated."""

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
from mpochain.surgery.finding import require_module
from mpochain.surgery.replacement import replace_layers
from mpochain.system.folders import read_unchanged

__all__ = ["load"]

# Largest accepted integers in a model's configuration: in general, and for fields that set the length of lists or
# tables.
_LARGEST = 1 << 24
_MOST = {"num_labels": 1 << 16, "position": 1 << 20, "n_ctx": 1 << 20}


def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Load a model written by :func:`save`. The dense weights of compressed layers are never allocated.

    Args:
        folder: folder of the checkpoint.
        model: the uncompressed architecture, best built under ``torch.device("meta")``; changed in place and returned.
            Not needed for Hugging Face models.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, malicious, or of another version or model. The message names the
            field.
        MissingDependencyError: the model is a Hugging Face model, and transformers or accelerate is not installed.

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
    if model is not None:
        require_module(model)
    folder = Path(folder)
    return read_unchanged(folder, lambda: _load(folder, model))


def _load(folder: Path, model: nn.Module | None) -> nn.Module:
    config = read_configuration(folder / CONFIG)
    file = folder / config.tensors
    try:
        if digest(file) != config.sha256:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {CONFIG}")
        with safetensors.safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if model is None:
                # First a sketch on the meta device: some models allocate buffers, such as masks of all positions, whose
                # size a malicious configuration could choose.
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
    """Build the Hugging Face model that the configuration names, with parameters on the meta device.

    With ``buffers="cpu"`` its buffers have values, for those that the model computes and checkpoints do not store.
    """
    if config.model is None:
        raise CheckpointError(f"{folder} does not state its model class; pass the architecture to load() as model=")
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingDependencyError(
            "loading a Hugging Face model needs transformers and accelerate; install them with: "
            "pip install 'mpochain[hf]'"
        ) from error
    kind: Any = getattr(transformers, config.model.name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise CheckpointError(f"{folder / CONFIG}: model.name: transformers has no model {config.model.name!r}")
    _check_sizes(config.model.config, tensors, f"{folder / CONFIG}: model.config")
    try:
        with torch.device("meta") if buffers == "meta" else init_empty_weights(include_buffers=False):
            settings: Any = kind.config_class
            return kind(settings.from_dict(config.model.config))
    except Exception as error:  # a malicious configuration may make transformers raise anything
        raise CheckpointError(f"{folder / CONFIG}: model.config: {error}") from error


def _check_sizes(config: Any, tensors: int, where: str) -> None:
    """Raise CheckpointError for integers that would make the architecture too large to build."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key.endswith("implementation") and isinstance(value, str) and not value.isidentifier():
                # transformers would download code from there.
                raise CheckpointError(f"{where}.{key} is {value!r}, expected the name of an implementation")
            number = isinstance(value, int) and not isinstance(value, bool)
            most = next((limit for part, limit in _MOST.items() if part in key), _LARGEST)
            if "layer" in key:
                most = tensors  # every layer has at least one tensor
            if number and value > most:
                raise CheckpointError(f"{where}.{key} is {value:,}, expected at most {most:,}")
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
        raise ArgumentError(f"a {type(layer).__name__} cannot be a compressed layer")
    return shape


def _compare(model: nn.Module, stored: Any, names: set[str], tied: Mapping[str, str], file: Path) -> None:
    """Raise CheckpointError if names or shapes in the file differ from the model's, before tensors are read."""
    wanted = model.state_dict()
    expected = set(wanted) - set(tied)
    if names != expected:
        odd = sorted(names ^ expected)[:3]
        raise CheckpointError(f"{file} does not fit its model: missing or unexpected tensors {', '.join(odd)}")
    for name, target in tied.items():
        if name not in wanted or target not in names:
            raise CheckpointError(f"{file.parent / CONFIG}: tied: {name!r} or {target!r} is not a tensor of the model")
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
    """Load the tensors of a file that fits the model."""
    values = {name: stored.get_tensor(name) for name in names}
    model.load_state_dict({**values, **{name: values[target] for name, target in tied.items()}}, assign=True)
    for name, target in tied.items():
        owner, _, attribute = target.rpartition(".")
        shared = getattr(model.get_submodule(owner), attribute)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, shared)


def _require_indices(model: nn.Module, file: Path) -> None:
    """Raise CheckpointError for index buffers with invalid values."""
    for prefix, layer in model.named_modules():
        if isinstance(layer, CompressedLayer):
            for name, index in layer.indices().items():
                try:
                    index.require_valid(f"{prefix}.{name}")
                except ArgumentError as error:
                    raise CheckpointError(f"{file}: {error}") from error
