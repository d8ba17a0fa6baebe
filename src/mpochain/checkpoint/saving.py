"""Saving of checkpoints: the tensors in a file named by its hash, and the configuration that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mpochain.checkpoint.configuration import CONFIG, TENSORS, VERSION, is_checkpoint
from mpochain.checkpoint.elements import require_storable
from mpochain.checkpoint.hugging_face import described
from mpochain.checkpoint.overlaps import require_no_overlaps
from mpochain.errors import ArgumentError, OutputError
from mpochain.nn import LAYERS, CompressedLayer, SeparateExperts
from mpochain.surgery.finding import compressed_layers, require_module
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.faults import output_errors
from mpochain.system.files import require_writable, write_bytes
from mpochain.system.folders import replaced_together
from mpochain.system.paths import as_path, require_path
from mpochain.system.reading import sha256_of
from mpochain.wording import kind_of

__all__ = [
    "distinct_tensors",
    "is_outdated",
    "require_no_other_model",
    "require_replaceable",
    "save",
    "without_shared_memory",
    "write_checkpoint",
]


def save(model: nn.Module, folder: Path | str) -> Path:
    """Save a model with its compressed layers to a folder, and replace an older checkpoint there.

    Args:
        model: any model. A Hugging Face model is saved with its configuration, so that :func:`mpochain.load` can build
            it. Of a model within ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, or with compiled
            parts, the plain model is saved.
        folder: created if needed.

    Returns:
        The folder.

    Raises:
        OutputError: the folder cannot be written, or holds another model, such as the dense one.
        ArgumentError: a compressed layer that :func:`mpochain.load` could not load, or a tensor or extra state that a
            checkpoint cannot hold; the message says what to do.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(MPOLinear(8, 8, max_bond=2), nn.ReLU())
        >>> with TemporaryDirectory() as folder:
        ...     sorted(file.suffix for file in save(model, folder).iterdir())
        ['.json', '.safetensors']
    """
    require_module(model)
    folder = as_path(folder, "folder")
    with without_wrappers(model) as plain:
        layers = _entries(plain)
        require_no_other_model(folder)
        with replaced_together(folder, outdated=is_outdated) as new:
            _write(plain, layers, new)
    return folder


def write_checkpoint(model: nn.Module, folder: Path) -> None:
    """Write a model to an empty folder that ``replaced_together`` gave.

    Raises:
        ArgumentError: a compressed layer that :func:`mpochain.load` could not load.
        OutputError: the files cannot be written.
    """
    require_module(model)
    with without_wrappers(model) as plain:
        _write(plain, _entries(plain), folder)


def is_outdated(name: str) -> bool:
    """Whether a file of a checkpoint's folder holds the tensors of an older one, by its name."""
    return TENSORS.fullmatch(name) is not None


def _write(model: nn.Module, layers: dict[str, Any], folder: Path) -> None:
    hugging_face = described(model)
    tensors, tied = distinct_tensors(model)
    buffers = _unlisted_buffers(model) if hugging_face is None else {}
    experts = [name for name, module in model.named_modules() if isinstance(module, SeparateExperts)]
    partial = folder / "model.safetensors"
    with output_errors(folder):
        save_file(without_shared_memory(tensors | buffers), partial)
        sha256 = sha256_of(partial)
        name = f"model-{sha256[:16]}.safetensors"
        partial.rename(folder / name)
    config = {
        "format": "mpochain",
        "version": VERSION,
        "tensors": name,
        "sha256": sha256,
        "layers": layers,
        "tied": tied,
        **({"buffers": list(buffers)} if buffers else {}),
        **({"experts": experts} if experts else {}),
        "model": hugging_face,
    }
    write_bytes(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def _entries(model: nn.Module) -> dict[str, Any]:
    """The entries of all compressed layers, after a check that a checkpoint can hold the model."""
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


def require_replaceable(folder: Path) -> Path:
    """Create a folder if needed, and check before any work that a checkpoint can be saved there without data loss.

    Raises:
        OutputError: the folder cannot be written, or holds a model that is no checkpoint of this library.
    """
    require_no_other_model(folder)
    return require_writable(folder)


def require_no_other_model(folder: Path) -> None:
    """Check that a folder, if it exists, holds no model but a checkpoint of this library.

    Raises:
        OutputError: it holds another model.
    """
    if (require_path(folder) / CONFIG).exists() and not is_checkpoint(folder):
        raise OutputError(
            f"{folder} holds another model, whose {CONFIG} would be replaced; name another folder, or remove it"
        )


def distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All distinct tensors by their first name, and a map from the other names of tied tensors to the first."""
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


def without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, which a file cannot hold: parts of a larger tensor are copied."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        value = value.contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def _unlisted_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state dict leaves out."""
    listed = model.state_dict()
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: value for name, value in buffers if name not in listed and value.device.type != "meta"}
