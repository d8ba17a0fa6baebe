"""Compressed layers in a model that transformers builds and fills, and the checks before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from mpochain.checkpoint.card import read_origin, remember_origin
from mpochain.checkpoint.configuration import Description
from mpochain.checkpoint.present_names import present_names
from mpochain.checkpoint.skeleton import put_in_place, require_fitting, require_valid_values
from mpochain.checkpoint.stored import StoredTensors, opened_files
from mpochain.errors import CheckpointError
from mpochain.surgery.tying import state_ties

__all__ = ["LoadedParts", "finish", "put_layers_in"]


@dataclass(frozen=True)
class LoadedParts:
    """What is known of a folder whose layers are in place.

    Attributes:
        folder: the folder.
        tied: names of tied tensors, and the names under which they are stored.
        renamed: present names of tensors that an earlier version named otherwise, by their names in the files.
    """

    folder: Path
    tied: dict[str, str]
    renamed: dict[str, str]


def put_layers_in(model: Any, description: Description, files: list[Path], dtype: torch.dtype | None) -> LoadedParts:
    """Put the compressed layers of a folder in place of a model's, and compare the stored tensors with them.

    Args:
        model: a model of transformers on the meta device; changed in place.
        description: the layers.
        files: the files of tensors.
        dtype: element type of the model; None for the default.

    Returns:
        What must be known once the tensors are loaded.

    Raises:
        CheckpointError: the layers or the tensors do not fit the model, or a file is damaged.
    """
    if not files:
        raise CheckpointError("a compressed model is read from its files; give from_pretrained a folder or a hub name")
    folder = files[0].parent
    try:
        with opened_files(files) as tensors:
            stated = getattr(model.config, "architectures", None) or [type(model).__name__]
            if type(model).__name__ in stated:
                _put(model, description, len(tensors), folder, dtype)
                fitting = require_fitting(model, StoredTensors(tensors), set(tensors), description.tied, files[0])
                tied = fitting[2]
            else:
                description = _for_other_class(model, description)
                _put(model, description, len(tensors), folder, dtype)
                _require_layers(model, description, tensors, files[0])
                tied = description.tied
            _state_what_is_tied(model, tied)
            renamed = present_names(tensors, model)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    return LoadedParts(folder, tied, renamed)


def finish(model: Any, loaded: LoadedParts) -> None:
    """Check the values of a model that transformers filled, and leave it as if it had been compressed here.

    Args:
        model: the model; changed in place.
        loaded: what :func:`put_layers_in` returned.

    Raises:
        CheckpointError: values that a layer cannot compute with, such as indices out of range.
    """
    for part in model.modules():
        config = vars(part).get("config")
        for name in ("_is_quantized", "transformers_weights"):
            if config is not None and name in vars(config):
                delattr(config, name)
    for name in ("_weight_conversions", "_keys_to_ignore_on_load_missing"):
        vars(model).pop(name, None)
    for name, stored in loaded.tied.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, _tensor(model, stored))
    require_valid_values(model, loaded.folder)
    state_ties(model)
    remember_origin(model, read_origin(loaded.folder))


def _put(model: Any, description: Description, tensors: int, folder: Path, dtype: torch.dtype | None) -> None:
    put_in_place(model, description, tensors, folder)
    if dtype is not None:
        for name in description.layers:
            model.get_submodule(name).to(dtype)


def _state_what_is_tied(model: Any, tied: Mapping[str, str]) -> None:
    # transformers ties parameters by this table, before it initialises what is missing. It knows no tied buffers.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {name: first for name, first in tied.items() if name in parameters}
    buffers = [f"^{re.escape(name)}$" for name in tied if name not in parameters]
    model._keys_to_ignore_on_load_missing = [*(model._keys_to_ignore_on_load_missing or ()), *buffers]


def _tensor(model: Any, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(owner), attribute)
    return tensor


def _for_other_class(model: Any, description: Description) -> Description:
    """The description for another class of the family, such as one without a head, in the names of that class."""
    prefix = f"{model.base_model_prefix}."
    modules, tensors = {name for name, _ in model.named_modules()}, set(model.state_dict())

    def ways(name: str) -> tuple[str, ...]:
        return name, name.removeprefix(prefix), prefix + name

    def renamed(name: str, known: Callable[[str], bool]) -> str | None:
        return next(filter(known, ways(name)), None)

    def part(name: str) -> str:
        return name.partition(".")[0]

    experts = [new for name in description.experts if (new := renamed(name, modules.__contains__))]
    # Separate experts and compressed layers hold modules and tensors that do not exist yet.
    separate = tuple(f"{name}." for name in experts)
    layers = {}
    for name, entry in description.layers.items():
        new = renamed(name, lambda way: way in modules or way.startswith(separate))
        if new is not None:
            layers[new] = entry
        elif {part(name), part(name.removeprefix(prefix)), prefix + part(name)} & modules:
            raise CheckpointError(
                f"a {type(model).__name__} has no layer {name}; load the folder by {_class_of(model)}, or give another "
                "class of the same family"
            )
    within = tuple(f"{name}." for name in layers)
    pairs = {
        renamed(name, lambda way: way in tensors or way.startswith(within)): renamed(
            first, lambda way: way in tensors or way.startswith(within)
        )
        for name, first in description.tied.items()
    }
    tied = {name: first for name, first in pairs.items() if name is not None and first is not None}
    return description.model_copy(update={"layers": layers, "experts": experts, "tied": tied})


def _class_of(model: Any) -> str:
    return (model.config.architectures or ["the class that it was saved from"])[0]


def _require_layers(model: Any, description: Description, tensors: Iterable[str], file: Path) -> None:
    """Refuse a model of another class in which a compressed layer would not be loaded."""
    prefix = f"{model.base_model_prefix}."
    held = {way for name in tensors for way in (name, name.removeprefix(prefix), prefix + name)}
    for layer in description.layers:
        for name in model.get_submodule(layer).state_dict():
            full = f"{layer}.{name}"
            if description.tied.get(full, full) not in held:
                raise CheckpointError(
                    f"{file} has no tensor {full} of a {type(model).__name__}; load the folder by {_class_of(model)}"
                )
