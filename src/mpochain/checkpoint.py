"""Compressed models as files: safetensors and JSON, no pickle, nothing allocated before it has been checked.

A folder holds ``config.json`` and the file of tensors that it names by its hash. The tensors are written first and the
configuration last, each by a rename, so a kill at any moment leaves the old model or the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from mpochain.atomic import require_writable, write_bytes
from mpochain.errors import CheckpointError, MissingDependencyError, MPOError, OutputError, SpecError
from mpochain.nn import InterpolativeLinear, MPOLinear, SumLinear
from mpochain.nn.replacement import replace_layers
from mpochain.nn.structure import compressed_layers, describe, skeleton

__all__ = ["load", "save"]

_VERSION = 1
_CONFIG = "config.json"
_LONGEST_CONFIG = 64 << 20
# The largest numbers of a model's configuration that are believed: whatever it is, and where it makes lists or tables.
_LARGEST = 1 << 24
_MOST = {"num_labels": 1 << 16, "position": 1 << 20, "n_ctx": 1 << 20}
_TENSORS = re.compile(r"model-[0-9a-f]{16}\.safetensors")


class _HuggingFace(BaseModel):
    model_config = ConfigDict(extra="forbid")

    library: Literal["transformers"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=200)]
    config: dict[str, Any]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["mpochain"]
    version: int
    tensors: Annotated[str, Field(pattern=_TENSORS.pattern)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    layers: dict[str, Any]
    tied: dict[str, str]
    model: _HuggingFace | None


def save(model: nn.Module, folder: Path | str) -> Path:
    """Write a model with its compressed layers into a folder; an older one there is replaced.

    Args:
        model: of any kind; one of transformers is kept with its configuration, so that it can be loaded by name.
        folder: made if needed.

    Returns:
        The folder.

    Raises:
        OutputError: it cannot be written.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(MPOLinear(8, 8, max_bond=2), nn.ReLU())
        >>> with TemporaryDirectory() as folder:
        ...     sorted(file.suffix for file in save(model, folder).iterdir())
        ['.json', '.safetensors']
    """
    folder = require_writable(Path(folder))
    tensors, tied = _tensors(model)
    partial = folder / f".model.{secrets.token_hex(4)}"
    try:
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
            digest = _digest(partial)
            name = f"model-{digest[:16]}.safetensors"
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    layers = {key: describe(layer) for key, layer in compressed_layers(model).items()}
    config = {
        "format": "mpochain",
        "version": _VERSION,
        "tensors": name,
        "sha256": digest,
        "layers": layers,
        "tied": tied,
        "model": _hugging_face(model),
    }
    write_bytes(folder / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    for old in folder.iterdir():
        if _TENSORS.fullmatch(old.name) and old.name != name:
            old.unlink()
    return folder


def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a model written by :func:`save`. The dense weights of compressed layers are never allocated.

    Args:
        folder: of the checkpoint.
        model: the uncompressed architecture, best made under ``torch.device("meta")``; it is changed into the result.
            Not needed for models of transformers.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file that is missing, damaged, of another version or model, or hostile, naming the field.
        MissingDependencyError: a model of transformers, which is not installed.

    Example:
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
    config = _read_config(folder / _CONFIG)
    file = folder / config.tensors
    try:
        if _digest(file) != config.sha256:
            raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {_CONFIG}")
        with safetensors.safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if model is None:
                model = _architecture(config, len(names), folder)
            _replace(model, config.layers, folder)
            _fill(model, stored, names, config.tied, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return model.eval()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and which other names each of them has."""
    first: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            tensors[name] = value
    return tensors, tied


def _hugging_face(model: nn.Module) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    if not type(model).__module__.startswith("transformers.") or not hasattr(config, "to_json_string"):
        return None
    return {"library": "transformers", "name": type(model).__name__, "config": json.loads(config.to_json_string(False))}


def _read_config(file: Path) -> _Config:
    try:
        if file.stat().st_size > _LONGEST_CONFIG:
            raise CheckpointError(f"{file} is larger than {_LONGEST_CONFIG >> 20} MiB, which no configuration is")
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as the configuration of a checkpoint: {error}") from error
    if isinstance(data, dict) and data.get("format") == "mpochain" and data.get("version") != _VERSION:
        raise CheckpointError(f"{file}: version {data.get('version')!r} is unknown; this release reads {_VERSION}")
    try:
        return _Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise CheckpointError(f"{file}: {where}: {first['msg']}") from error


def _architecture(config: _Config, tensors: int, folder: Path) -> nn.Module:
    """The model of transformers that the configuration names, its parameters without numbers."""
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
        raise CheckpointError(f"{folder / _CONFIG}: model.name: transformers has no model {config.model.name!r}")
    _check_sizes(config.model.config, tensors, f"{folder / _CONFIG}: model.config")
    try:
        # Buffers have numbers: some are made by the model and stored nowhere.
        with init_empty_weights(include_buffers=False):
            settings: Any = kind.config_class
            return kind(settings.from_dict(config.model.config))
    except Exception as error:  # whatever a hostile configuration makes transformers raise
        raise CheckpointError(f"{folder / _CONFIG}: model.config: {error}") from error


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
    where = folder / _CONFIG
    modules = dict(model.named_modules())
    for name, description in layers.items():
        old = modules.get(name) if name else None
        if old is None:
            raise CheckpointError(f"{where}: layers: the model has no layer {name!r}")
        try:
            made = skeleton(description, _shape(old), f"layers.{name}")
        except MPOError as error:
            raise CheckpointError(f"{where}: {error}") from error
        replace_layers(model, {old: made})


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear | MPOLinear | InterpolativeLinear | SumLinear):
        return layer.out_features, layer.in_features
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return int(weight.shape[1]), int(weight.shape[0])  # transformers keeps it the other way round
    raise SpecError(f"a {type(layer).__name__} cannot have been compressed")


def _fill(model: nn.Module, stored: Any, names: set[str], tied: Mapping[str, str], file: Path) -> None:
    """Give a model the numbers of a file, whose names and shapes are compared before any of them is read."""
    wanted = model.state_dict()
    expected = set(wanted) - set(tied)
    if names != expected:
        odd = sorted(names ^ expected)[:3]
        raise CheckpointError(f"{file} does not fit its model: missing or unexpected tensors {', '.join(odd)}")
    for name, target in tied.items():
        if name not in wanted or target not in names:
            raise CheckpointError(
                f"{file.parent / _CONFIG}: tied: {name!r} and {target!r} are not tensors of the model"
            )
    for name in sorted(names):
        shape = tuple(stored.get_slice(name).get_shape())
        if shape != tuple(wanted[name].shape):
            raise CheckpointError(f"{file}: {name} has shape {shape}, expected {tuple(wanted[name].shape)}")
    values = {name: stored.get_tensor(name) for name in names}
    model.load_state_dict({**values, **{name: values[target] for name, target in tied.items()}}, assign=True)
    for name, target in tied.items():
        owner, _, attribute = target.rpartition(".")
        shared = getattr(model.get_submodule(owner), attribute)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, shared)
