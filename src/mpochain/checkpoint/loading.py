"""Loading of checkpoints; names, shapes and sizes are validated before any memory is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mpochain.checkpoint.card import read_origin, remember_origin
from mpochain.checkpoint.configuration import CONFIG, Configuration, read_configuration
from mpochain.checkpoint.elements import same_kind
from mpochain.checkpoint.hugging_face import HuggingFaceModel
from mpochain.checkpoint.placement import DeviceMap, Placement
from mpochain.checkpoint.present_names import PresentNames
from mpochain.checkpoint.skeleton import put_in_place, require_fitting, require_valid_values
from mpochain.checkpoint.stored import StoredTensors, opened_tensors
from mpochain.errors import ArgumentError, CheckpointError
from mpochain.surgery.finding import require_module
from mpochain.surgery.tying import state_ties
from mpochain.surgery.wrappers import without_wrappers
from mpochain.system.folders import read_unchanged
from mpochain.system.memory import available_memory
from mpochain.system.paths import as_path

__all__ = ["load"]


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def load(
    folder: Path | str,
    model: nn.Module | None = None,
    *,
    device_map: DeviceMap = None,
    dtype: str | torch.dtype | None = None,
) -> nn.Module:
    """Load a model written by :func:`save`. The dense weights of compressed layers are never allocated.

    Args:
        folder: folder of the checkpoint.
        model: the uncompressed architecture, best built under ``torch.device("meta")``; changed in place and returned.
            Buffers on the meta device get their values from the checkpoint, also those that the state dict leaves out;
            such buffers elsewhere keep their values. Not needed for Hugging Face models.
        device_map: where the model is put once it is loaded: a device such as ``"cuda"``, ``"auto"``, or a device for
            each part by name, see :class:`mpochain.checkpoint.Placement`. By default it stays on the CPU.
        dtype: floating-point type of the model, as ``"bfloat16"``; by default that of the file.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, malicious, or of another version or model. The message names the
            field.
        ArgumentError: the architecture has tensors on the meta device that the checkpoint does not hold, or a device is
            not there.
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
    folder, placement = as_path(folder, "folder"), Placement(device_map, dtype)
    if model is None:
        loaded = read_unchanged(folder, lambda: _load(folder, None))
        placement.apply(loaded)
        return loaded
    with without_wrappers(model, editing=True) as plain:
        read_unchanged(folder, lambda: _load(folder, plain))
    placement.apply(model)
    return model


def _load(folder: Path, model: nn.Module | None) -> nn.Module:
    config = read_configuration(folder / CONFIG)
    file = folder / config.tensors
    with opened_tensors(folder, config) as stored:
        names = set(stored.keys()) - set(config.buffers)
        if model is not None:
            _require_values(model, config.buffers, folder)
            _fill_buffers(model, stored, config.buffers, f"{folder / CONFIG}: buffers")
        else:
            # First a sketch on the meta device: some models allocate buffers, such as masks of all positions, whose
            # size a malicious configuration could choose.
            built = _hugging_face(config, folder)
            sketch = built.sketch(len(names))
            put_in_place(sketch, config, len(names), folder)
            require_fitting(sketch, stored, names, config.tied, file)
            _require_space(sketch, f"{folder / CONFIG}: {config.place('config')}")
            model = built.build()
        put_in_place(model, config, len(names), folder)
        _fill(model, *require_fitting(model, stored, names, config.tied, file))
        require_valid_values(model, file)
    state_ties(model)
    remember_origin(model, read_origin(folder))
    return model.eval()


def _hugging_face(config: Configuration, folder: Path) -> HuggingFaceModel:
    if config.model is None:
        raise CheckpointError(f"{folder} does not state its model class; pass the architecture to load() as model=")
    model, place = config.model, config.place

    def where(field: str) -> str:
        return f"{folder / CONFIG}: {place(field)}"

    try:
        return HuggingFaceModel(model.name, model.config, model.generation, where, model.arguments)
    except RecursionError as error:
        raise CheckpointError(f"{where('config')} is nested too deeply") from error


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


def _fill_buffers(model: nn.Module, stored: StoredTensors, names: Sequence[str], where: str) -> None:
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


def _fill(model: nn.Module, stored: PresentNames, names: set[str], tied: Mapping[str, str]) -> None:
    """Load the tensors of a file that fits the model."""
    values = {name: stored.get_tensor(name) for name in names}
    model.load_state_dict({**values, **{name: values[target] for name, target in tied.items()}}, assign=True)
    for name, target in tied.items():
        owner, _, attribute = target.rpartition(".")
        shared = getattr(model.get_submodule(owner), attribute)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, shared)
