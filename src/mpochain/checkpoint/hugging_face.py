"""Configuration of a Hugging Face model within a checkpoint: writing it, and building the model from untrusted values.

transformers writes infinities and NaN as tagged objects, ``{"__float__": "Infinity"}``, and only its own readers of
files decode them. A configuration can also make transformers download code or ask the hub for other configurations
while the model is built; such values are refused.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from mpochain.checkpoint.building import bounded_building
from mpochain.errors import ArgumentError, CheckpointError, MissingDependencyError

__all__ = [
    "HuggingFaceModel",
    "constructor_arguments",
    "described",
    "require_no_code",
    "require_own_implementations",
]

# Implementations that are part of transformers and torch. Others, such as those of flash attention, may be downloaded.
_IMPLEMENTATIONS = (None, "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
# Fields that name code, kernels or a quantiser to import or download.
_CODE = ("auto_map", "custom_pipelines", "kernel_config", "quantization_config", "trust_remote_code", "use_kernels")
# Arguments of constructors that leave out or add a part.
_ARGUMENTS = ("add_pooling_layer", "use_mask_token")
# Fields of timm's models that name an architecture, and prefixes of names that timm looks up on the hub or the disk.
_NAMES = ("backbone", "architecture")
_LOOKED_UP = ("hf-hub:", "hf_hub:", "local-dir:", "http:", "https:", "file:")


def described(model: nn.Module) -> dict[str, Any] | None:
    """Describe a Hugging Face model for the configuration of a checkpoint; None for other models.

    Parts of models, which transformers cannot build by name, are other models.

    Raises:
        ArgumentError: the model's configuration has a value that JSON cannot represent, or that :func:`mpochain.load`
            would refuse.
    """
    config: Any = getattr(model, "config", None)
    if not type(model).__module__.startswith("transformers.") or not hasattr(config, "to_json_string"):
        return None
    import transformers  # imported already, as the model's class is one of its

    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        return None
    try:
        fields = json.loads(config.to_json_string(False))
        generation: Any = getattr(model, "generation_config", None)
        stops = json.loads(generation.to_json_string(use_diff=False)) if generation is not None else None
    except (TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"the configuration of {name} cannot be written as JSON ({error}); set its fields to plain values"
        ) from error
    # The classes of transformers are used, so the repository's own code, which no checkpoint holds, is not needed.
    _without_auto_map(fields)
    require_no_code(fields, f"the configuration of {name}: config")
    described = {"library": "transformers", "name": name, "config": fields, "generation": stops}
    arguments = constructor_arguments(model)
    return described | {"arguments": arguments} if arguments else described


def constructor_arguments(model: nn.Module) -> dict[str, bool]:
    """The arguments of a model's constructor that its configuration does not state, where they are not the default.

    Example:
        >>> constructor_arguments(nn.Linear(2, 2))
        {}
    """
    allowed = inspect.signature(type(model).__init__).parameters
    embeddings = getattr(model, "embeddings", None)
    present = {
        "add_pooling_layer": getattr(model, "pooler", None) is not None,
        "use_mask_token": getattr(embeddings, "mask_token", None) is not None,
    }
    return {name: present[name] for name in _ARGUMENTS if name in allowed and allowed[name].default != present[name]}


def _without_auto_map(fields: Any) -> None:
    if isinstance(fields, dict):
        fields.pop("auto_map", None)
    for value in fields.values() if isinstance(fields, dict) else fields if isinstance(fields, list) else ():
        _without_auto_map(value)


def require_no_code(value: Any, where: str, error: type[Exception] = ArgumentError) -> None:
    """Refuse fields of a configuration, at any depth, that make transformers download or import code.

    Args:
        value: decoded JSON.
        where: name of the value in errors.
        error: class of the error.

    Raises:
        ArgumentError: such a field, or another class given as ``error``. The message names the field.

    Example:
        >>> require_no_code({"hidden_size": 8, "text_config": {"attn_implementation": "sdpa"}}, "config")
    """
    for key, item, name in _fields(value, where):
        if key in _CODE and item:
            raise error(f"{name} names code or data to load from elsewhere; a model's own files cannot ask for that")
    require_own_implementations(value, where, error)


def require_own_implementations(value: Any, where: str, error: type[Exception] = ArgumentError) -> None:
    """Refuse names in a configuration, at any depth, that transformers looks up on the hub while it builds a model.

    These are implementations, such as kernels of attention, and architectures of backbones.

    Args:
        value: decoded JSON.
        where: name of the value in errors.
        error: class of the error.

    Raises:
        ArgumentError: such a name, or another class given as ``error``. The message names the field.

    Example:
        >>> require_own_implementations({"text_config": {"attn_implementation": "eager"}}, "config")
    """
    for key, item, name in _fields(value, where):
        if key.endswith(("implementation", "implementation_internal")) and key != "cache_implementation":
            _require_implementation(item, name, error)
    _require_own_backbones(value, where, error)


def _fields(value: Any, where: str) -> Iterator[tuple[str, Any, str]]:
    """Yield every key, value and full name of a nested configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        name = f"{where}.{key}"
        if isinstance(key, str):
            yield key, item, name
        yield from _fields(item, name)


def _require_own_backbones(value: Any, where: str, error: type[Exception]) -> None:
    if isinstance(value, list):
        for k, item in enumerate(value):
            _require_own_backbones(item, f"{where}.{k}", error)
    if not isinstance(value, dict):
        return
    kind = value.get("model_type")
    described = isinstance(value.get("backbone_config"), dict) or (isinstance(kind, str) and kind.startswith("timm_"))
    for key, item in value.items():
        if key in _NAMES and isinstance(item, str) and (item.startswith(_LOOKED_UP) or not described):
            raise error(
                f"{where}.{key} is {item!r}, which would be looked up on the hub; state a backbone_config instead"
            )
        _require_own_backbones(item, f"{where}.{key}", error)


def _require_implementation(value: Any, where: str, error: type[Exception]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_implementation(item, f"{where}.{key}", error)
    elif value is not None and value not in _IMPLEMENTATIONS:
        known = ", ".join(filter(None, _IMPLEMENTATIONS))
        raise error(f"{where} is {value!r}, expected the name of an implementation within transformers, one of {known}")


class HuggingFaceModel:
    """A model class of transformers and its configuration, from a file that is not trusted.

    Args:
        name: name of the class in ``transformers``.
        config: fields of its configuration.
        generation: fields of its generation configuration; None for the default.
        arguments: further arguments of the class, by name.
        where: gives the place of a field, such as ``"config"``, in errors.

    Raises:
        CheckpointError: transformers has no such model, it takes no such argument, or a field would load code.
        MissingDependencyError: transformers or accelerate is not installed.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None,
        where: Callable[[str], str],
        arguments: Mapping[str, bool] | None = None,
    ) -> None:
        try:
            import transformers
            from accelerate import init_empty_weights
        except ImportError as error:
            raise MissingDependencyError(
                "loading a Hugging Face model needs transformers and accelerate; install them with: "
                "pip install 'mpochain[hf]'"
            ) from error
        self._without_weights: Any = init_empty_weights
        self._generation_class: Any = transformers.GenerationConfig
        try:
            self._class: Any = getattr(transformers, name, None)
        except Exception as error:  # a module of transformers that cannot be imported
            raise CheckpointError(f"{where('name')}: transformers cannot import {name!r}: {error}") from error
        if not (isinstance(self._class, type) and issubclass(self._class, transformers.PreTrainedModel)):
            raise CheckpointError(f"{where('name')}: transformers has no model {name!r}")
        self._where, self._arguments = where, dict(arguments or {})
        allowed = inspect.signature(self._class.__init__).parameters
        for argument in self._arguments:
            if argument not in allowed or argument not in _ARGUMENTS:
                raise CheckpointError(f"{where('arguments')}: {name} takes no argument {argument!r}")
        require_no_code(config, where("config"), CheckpointError)
        require_no_code(generation, where("generation"), CheckpointError)
        self._config, self._generation = config, generation

    def sketch(self, tensors: int) -> nn.Module:
        """Build the model on the meta device, so that no size allocates memory, within the limits of a file.

        Args:
            tensors: number of tensors in the file.

        Raises:
            CheckpointError: the configuration is invalid, or describes a much larger model than the file has tensors
                for.
        """
        return bounded_building(lambda: self._built(torch.device("meta")), tensors, self._where("config"))

    def build(self) -> nn.Module:
        """Build the model with parameters on the meta device and the values of its buffers, on the CPU.

        Checkpoints do not store all buffers.

        Raises:
            CheckpointError: the configuration is invalid.
        """
        # The CPU, whatever the default device is: the tensors of the file are read there, too.
        try:
            with torch.device("cpu"):
                model: Any = self._built(self._without_weights(include_buffers=False))
        except MemoryError as error:
            raise CheckpointError(f"{self._where('config')}: the memory does not suffice for this model") from error
        if self._generation is not None:
            try:
                model.generation_config = self._generation_class.from_dict(dict(self._generation))
            except Exception as error:
                raise CheckpointError(f"{self._where('generation')}: {error}") from error
        return model

    def _built(self, context: AbstractContextManager[Any]) -> nn.Module:
        settings: Any = self._class.config_class
        try:
            with context:
                # Decoded anew for every model, as transformers changes nested dictionaries.
                fields = settings._decode_special_floats(json.loads(json.dumps(self._config)))
                return self._class(settings.from_dict(fields), **self._arguments)
        except MemoryError:
            raise
        except Exception as error:  # a malicious configuration may make transformers raise anything
            raise CheckpointError(f"{self._where('config')}: {type(error).__name__}: {error}") from error
