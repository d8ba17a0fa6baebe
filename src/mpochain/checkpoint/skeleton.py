"""Compressed layers of a checkpoint in place of a model's, without values, and comparison of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.architectures import fused_experts
from mpochain.checkpoint.configuration import CONFIG, Configuration, Description
from mpochain.checkpoint.elements import require_elements
from mpochain.checkpoint.present_names import PresentNames, present_names
from mpochain.checkpoint.stored import StoredTensors
from mpochain.errors import ArgumentError, CheckpointError, MPOError
from mpochain.nn import CompressedLayer, RowEmbedding, SeparateExperts
from mpochain.nn.dense import dense_shape
from mpochain.nn.former_names import former_names_in
from mpochain.nn.kinds import layer_of
from mpochain.surgery.experts import separate_experts
from mpochain.surgery.replacement import replace_layers
from mpochain.wording import kind_of

__all__ = ["put_in_place", "require_fitting", "require_valid_values"]


def put_in_place(model: nn.Module, config: Configuration | Description, tensors: int, folder: Path) -> None:
    """Put the compressed layers of a checkpoint in place of a model's layers, on the meta device.

    Args:
        model: the uncompressed architecture; changed in place.
        config: states the layers.
        tensors: number of tensors in the checkpoint, which limits the number of experts.
        folder: folder of the checkpoint, for errors.

    Raises:
        CheckpointError: the layers do not fit the model. The message names the field.
    """
    _separate(model, config.experts, tensors, folder)
    _replace(model, config.layers, folder)


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


def require_fitting(
    model: nn.Module, file_tensors: StoredTensors, file_names: set[str], tied_in_file: Mapping[str, str], file: Path
) -> tuple[PresentNames, set[str], dict[str, str]]:
    """Compare names, shapes and element types of stored tensors with the model's, before tensors are read.

    Args:
        model: the model, whose tensors may be on the meta device.
        file_tensors: the tensors.
        file_names: which of them are of the model's state dict.
        tied_in_file: names of tied tensors, and the names under which they are stored.
        file: file of the tensors, for errors.

    Returns:
        The tensors, their names, and which are tied, all by the names that the model has.

    Raises:
        CheckpointError: they differ. The message names the tensor.
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


def require_valid_values(model: nn.Module, file: Path) -> None:
    """Refuse values that a compressed layer cannot compute with, such as indices out of range.

    Layers with tensors on the meta device, which are read from the disk when they run, are left out.

    Raises:
        CheckpointError: naming the tensor.
    """
    for prefix, layer in model.named_modules():
        if isinstance(layer, CompressedLayer) and not any(value.is_meta for value in layer.state_dict().values()):
            try:
                layer.require_valid(prefix)
            except MPOError as error:
                raise CheckpointError(f"{file}: {error}") from error
