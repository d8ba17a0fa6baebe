"""Loading of checkpoints; names, shapes and sizes are validated before any memory is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from mpochain.architectures import fused_experts
from mpochain.checkpoint.configuration import CONFIG, Configuration, read_configuration, tensors_file
from mpochain.checkpoint.elements import require_elements, same_kind
from mpochain.checkpoint.hugging_face import HuggingFaceModel
from mpochain.checkpoint.present_names import PresentNames, present_names
from mpochain.errors import ArgumentError, CheckpointError, MPOError
from mpochain.nn import CompressedLayer, RowEmbedding, SeparateExperts
from mpochain.nn.dense import dense_shape
from mpochain.nn.former_names import former_names_in
from mpochain.nn.kinds import layer_of
from mpochain.surgery.experts import separate_experts
from mpochain.surgery.finding import require_module
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.folders import read_unchanged
from mpochain.system.memory import available_memory
from mpochain.system.paths import as_path
from mpochain.wording import kind_of

__all__ = ["load"]


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def load(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Load a model written by :func:`save`. The dense weights of compressed layers are never allocated.

    Args:
        folder: folder of the checkpoint.
        model: the uncompressed architecture, best built under ``torch.device("meta")``; changed in place and returned.
            Buffers on the meta device get their values from the checkpoint, also those that the state dict leaves out;
            such buffers elsewhere keep their values. Not needed for Hugging Face models.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, malicious, or of another version or model. The message names the
            field.
        ArgumentError: the architecture has tensors on the meta device that the checkpoint does not hold.
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
    folder = as_path(folder, "folder")
    if model is None:
        return read_unchanged(folder, lambda: _load(folder, None))
    with without_wrappers(model, editing=True) as plain:
        read_unchanged(folder, lambda: _load(folder, plain))
    return model


def _load(folder: Path, model: nn.Module | None) -> nn.Module:
    config = read_configuration(folder / CONFIG)
    file, intact = tensors_file(folder, config)
    if not intact:
        raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {CONFIG}")
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            names = set(stored.keys()) - set(config.buffers)
            if model is not None:
                _require_values(model, config.buffers, folder)
                _fill_buffers(model, stored, config.buffers, f"{folder / CONFIG}: buffers")
            else:
                # First a sketch on the meta device: some models allocate buffers, such as masks of all positions, whose
                # size a malicious configuration could choose.
                built = _hugging_face(config, folder)
                sketch = built.sketch(len(names))
                _separate(sketch, config.experts, len(names), folder)
                _replace(sketch, config.layers, folder)
                _compare(sketch, stored, names, config.tied, file)
                _require_space(sketch, f"{folder / CONFIG}: model.config")
                model = built.build()
            _separate(model, config.experts, len(names), folder)
            _replace(model, config.layers, folder)
            _fill(model, *_compare(model, stored, names, config.tied, file))
            _require_valid_values(model, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return model.eval()


def _hugging_face(config: Configuration, folder: Path) -> HuggingFaceModel:
    if config.model is None:
        raise CheckpointError(f"{folder} does not state its model class; pass the architecture to load() as model=")
    where = f"{folder / CONFIG}: model"
    try:
        model = config.model
        return HuggingFaceModel(model.name, model.config, model.generation, where, model.arguments)
    except RecursionError as error:
        raise CheckpointError(f"{where}.config is nested too deeply") from error


def _require_values(model: nn.Module, buffers: Sequence[str], folder: Path) -> None:
    """Raise ArgumentError for tensors on the meta device that the checkpoint does not hold."""
    stored = {id(value) for value in model.state_dict(keep_vars=True).values()}
    for prefix, module in model.named_modules():
        for attribute, value in _tensors_of(module):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if value.device.type == "meta" and id(value) not in stored and name not in buffers:
                raise ArgumentError(
                    f"{name} is on the meta device, and {folder} does not hold its values; build the "
                    "architecture on the CPU, or with accelerate.init_empty_weights(include_buffers=False)"
                )


def _fill_buffers(model: nn.Module, stored: Any, names: Sequence[str], where: str) -> None:
    """Load the buffers that are on the meta device and that the state dict leaves out."""
    listed, buffers = model.state_dict(), dict(model.named_buffers(remove_duplicate=False))
    held = set(stored.keys())
    for name in names:
        if name in listed or name not in buffers or name not in held:
            raise CheckpointError(f"{where}: {name!r} is not a buffer of the model that its state dict leaves out")
        if buffers[name].device.type != "meta":
            continue
        shape, element = tuple(stored.get_slice(name).get_shape()), str(stored.get_slice(name).get_dtype())
        expected = buffers[name]
        if shape != tuple(expected.shape) or not same_kind(element, expected.dtype):
            raise CheckpointError(
                f"{where}: {name} has shape {shape} and type {element}, expected {tuple(expected.shape)} and "
                f"{expected.dtype}"
            )
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, stored.get_tensor(name))


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain attributes of a module that are tensors."""
    for attributes in (module._parameters, module._buffers, vars(module)):
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((f"{name}.{k}", item) for k, item in enumerate(value) if isinstance(item, Tensor))


def _require_space(sketch: nn.Module, where: str) -> None:
    """Raise CheckpointError if the buffers that are computed instead of stored take more memory than there is."""
    stored = {id(value) for value in sketch.state_dict(keep_vars=True).values()}
    size = sum(value.numel() * value.element_size() for value in sketch.buffers() if id(value) not in stored)
    available = available_memory()
    if available is not None and size > available:
        raise CheckpointError(
            f"{where}: the model's tables take {size >> 20:,} MiB, but {available >> 20:,} MiB of memory are available"
        )


def _separate(model: nn.Module, experts: Sequence[str], tensors: int, folder: Path) -> None:
    """Make the experts separate layers that are so in the checkpoint."""
    where = f"{folder / CONFIG}: experts"
    modules = dict(model.named_modules())
    # A short configuration can state any number of experts, and each becomes two modules.
    layouts = {name: fused_experts(modules[name]) for name in experts if name in modules}
    count = sum(len(modules[name].get_parameter(layout.up)) for name, layout in layouts.items() if layout is not None)
    if count > tensors:
        raise CheckpointError(f"{where}: the model has {count:,} experts, the file {tensors:,} tensors")
    try:
        separate_experts(model, [name for name in experts if not isinstance(modules.get(name), SeparateExperts)])
    except ArgumentError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _replace(model: nn.Module, layers: Mapping[str, Any], folder: Path) -> None:
    where = folder / CONFIG
    modules, every = dict(model.named_modules()), dict(model.named_modules(remove_duplicate=False))
    replaced: dict[nn.Module, nn.Module] = {}
    for name, description in layers.items():
        old = modules.get(name) if name else None
        if old is None:
            shared = every.get(name)
            first = next((first for first, module in modules.items() if module is shared), None)
            if shared is not None and first is not None:
                raise CheckpointError(
                    f"{where}: layers: {first} and {name} are two layers in the checkpoint, but one in the model "
                    "given; give a model in which they are not shared"
                )
            raise CheckpointError(f"{where}: layers: the model has no layer {name!r}")
        try:
            layer = layer_of(description, _shape(old), f"layers.{name}")
            if isinstance(layer, RowEmbedding) is not isinstance(old, RowEmbedding | nn.Embedding):
                raise ArgumentError(f"layers.{name} is {kind_of(layer)} in place of {kind_of(old)}")
        except MPOError as error:
            raise CheckpointError(f"{where}: {error}") from error
        replaced[old] = layer
    replace_layers(model, replaced)


def _shape(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, CompressedLayer):
        return layer.shape
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    shape = dense_shape(layer)
    if shape is None:
        raise ArgumentError(f"{kind_of(layer)} cannot be a compressed layer")
    return shape


def _compare(
    model: nn.Module, file_tensors: Any, file_names: set[str], tied_in_file: Mapping[str, str], file: Path
) -> tuple[Any, set[str], Mapping[str, str]]:
    """Raise CheckpointError if names or shapes in the file differ from the model's, before tensors are read.

    Returns:
        The tensors of the file, their names, and which are tied, all by the names that the model has.
    """
    present = present_names(file_tensors, model)
    stored = PresentNames(file_tensors, present)
    names = {present.get(name, name) for name in file_names}
    renamed = former_names_in(model)
    tied = {renamed.get(name, name): renamed.get(target, target) for name, target in tied_in_file.items()}
    for name, target in tied.items():
        copy, layer = (_module_of(model, key) for key in (name, target))
        if isinstance(layer, CompressedLayer) and copy is not None and not isinstance(copy, CompressedLayer):
            one, other = (key.rpartition(".")[0] for key in (target, name))
            raise CheckpointError(
                f"{file.parent / CONFIG}: tied: {one} and {other} are one layer in the checkpoint, but two in the "
                "model given; give a model in which they are the same module"
            )
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
    elements = {name: str(stored.get_slice(name).get_dtype()) for name in names}
    try:
        require_elements(model, elements | {name: elements[target] for name, target in tied.items()})
    except ArgumentError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return stored, names, tied


def _module_of(model: nn.Module, tensor: str) -> nn.Module | None:
    """The module that holds a tensor of this name; None if there is none."""
    try:
        return model.get_submodule(tensor.rpartition(".")[0])
    except AttributeError:
        return None


def _fill(model: nn.Module, stored: Any, names: set[str], tied: Mapping[str, str]) -> None:
    """Load the tensors of a file that fits the model."""
    values = {name: stored.get_tensor(name) for name in names}
    model.load_state_dict({**values, **{name: values[target] for name, target in tied.items()}}, assign=True)
    for name, target in tied.items():
        owner, _, attribute = target.rpartition(".")
        shared = getattr(model.get_submodule(owner), attribute)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, shared)


def _require_valid_values(model: nn.Module, file: Path) -> None:
    """Raise CheckpointError for values that a compressed layer cannot compute with, such as indices out of range."""
    for prefix, layer in model.named_modules():
        if isinstance(layer, CompressedLayer):
            try:
                layer.require_valid(prefix)
            except MPOError as error:
                raise CheckpointError(f"{file}: {error}") from error
