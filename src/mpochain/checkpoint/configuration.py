"""Configuration file of a checkpoint: its two formats, their fields, and their validation.

The folder of a Hugging Face model has the configuration of transformers, with the description of the compressed layers
in its field ``quantization_config``. The folder of any other model has a configuration of this library's own, and so
have the folders of Hugging Face models of version 1.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpochain.errors import CheckpointError
from mpochain.system.reading import file_within, read_bytes

__all__ = [
    "CONFIG",
    "GENERATION",
    "INDEX",
    "LONGEST_JSON",
    "METHOD",
    "TENSORS",
    "VERSION",
    "Configuration",
    "Description",
    "described_layers",
    "is_checkpoint",
    "read_configuration",
]

# The version that is written. Version 1 had the configuration of a Hugging Face model in a field ``model``.
VERSION = 2
_READ = (1, 2)
CONFIG, GENERATION = "config.json", "generation_config.json"
# Index of files of tensors, where Trainer looks for it.
INDEX = "model.safetensors.index.json"
# Name of the format in the configuration of transformers.
METHOD = "mpochain"
LONGEST_JSON = 64 << 20
TENSORS = re.compile(r"model-[0-9a-f]{16}\.safetensors(\.index\.json)?")
# Fields of the configuration of transformers that are those of the folder, not of the model.
_OF_THE_FOLDER = ("quantization_config", "transformers_weights")

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_ClassName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=200)]
Fields = TypeVar("Fields", bound=BaseModel)


class _HuggingFace(BaseModel):
    model_config = ConfigDict(extra="forbid")

    library: Literal["transformers"]
    name: _ClassName
    config: dict[str, Any]
    generation: dict[str, Any] | None = None
    arguments: dict[str, bool] = {}


class Configuration(BaseModel):
    """What a checkpoint holds: the fields of a ``config.json`` of this library's own.

    Attributes:
        format: always ``"mpochain"``.
        version: version of the format.
        tensors: name of the file of tensors, or of the index of several such files.
        sha256: SHA-256 of that file.
        layers: entry of each compressed layer, by its name in the model.
        tied: maps the name of each tied tensor to the name under which it is stored.
        buffers: names of stored buffers that the model's state dict leaves out, so that an architecture on the meta
            device can be given their values. Hugging Face models compute theirs.
        experts: names of the modules whose fused experts are separate layers in the checkpoint.
        model: class, configuration and generation configuration of a Hugging Face model; None for other models.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["mpochain"]
    version: int
    tensors: Annotated[str, Field(pattern=f"^{TENSORS.pattern}$")]
    sha256: _Sha256
    layers: dict[str, Any]
    tied: dict[str, str]
    buffers: list[str] = []
    experts: list[str] = []
    model: _HuggingFace | None

    def place(self, field: str) -> str:
        """The name in errors of a field of :attr:`model`, as it is in the file."""
        if self.version == 1:
            return f"model.{field}"
        return {"name": "architectures", "arguments": "quantization_config.arguments"}.get(field, field)


class Description(BaseModel):
    """The field ``quantization_config`` of a Hugging Face model.

    Attributes:
        quant_method: always ``"mpochain"``.
        version: version of the format.
        layers: as in :class:`Configuration`.
        tied: as in :class:`Configuration`.
        experts: as in :class:`Configuration`.
        arguments: arguments of the class that its configuration does not state.
        sha256: SHA-256 of the file of tensors, which is named by it, or of the index of several such files.
        sharded: whether it is an index.
    """

    model_config = ConfigDict(extra="forbid")

    quant_method: Literal["mpochain"]
    version: int
    layers: dict[str, Any]
    tied: dict[str, str]
    experts: list[str] = []
    arguments: dict[str, bool] = {}
    sha256: _Sha256
    sharded: bool = False

    @property
    def tensors(self) -> str:
        """Name of the file of tensors, or of the index."""
        return f"model-{self.sha256[:16]}.safetensors" + (".index.json" if self.sharded else "")


class _Architectures(BaseModel):
    architectures: Annotated[list[_ClassName], Field(min_length=1, max_length=1)]


def is_checkpoint(folder: Path) -> bool:
    """True if the folder's ``config.json`` has a format of this library; the tensors are not checked."""
    try:
        data = _read(folder / CONFIG)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and (data.get("format") == METHOD or _is_described(data))


def read_configuration(file: Path) -> Configuration:
    """Read and validate the configuration of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, too large, not a regular file of its folder, or of another
            version. The message names the field.
    """
    data = _required(file, "the configuration of a checkpoint")
    if _is_described(data):
        return _of_transformers(data, file)
    if isinstance(data, dict) and data.get("format") != METHOD:
        raise CheckpointError(
            f"{file}: format is {repr(data.get('format'))[:80]}, expected 'mpochain' (a compressed model's checkpoint)"
        )
    if isinstance(data, dict):
        _require_version(data.get("version"), f"{file}: version")
    return _validated(Configuration, data, f"{file}: ")


def described_layers(fields: Any, where: str) -> Description:
    """Validate the field ``quantization_config`` of a Hugging Face model.

    Args:
        fields: decoded JSON.
        where: name of the field in errors.

    Raises:
        CheckpointError: it is damaged, or of another version. The message names the field within it.

    Example:
        >>> fields = {"quant_method": "mpochain", "version": 2, "layers": {}, "tied": {}, "sha256": "0" * 64}
        >>> described_layers(fields, "quantization_config").tensors
        'model-0000000000000000.safetensors'
    """
    if isinstance(fields, dict):
        _require_version(fields.get("version"), f"{where}.version")
    return _validated(Description, fields, f"{where}.")


def _of_transformers(data: dict[str, Any], file: Path) -> Configuration:
    description = described_layers(data["quantization_config"], f"{file}: quantization_config")
    name = _validated(_Architectures, data, f"{file}: ").architectures[0]
    generation = None
    if (file.parent / GENERATION).exists():
        generation = _required(file.parent / GENERATION, "the generation configuration of a model")
        if not isinstance(generation, dict):
            raise CheckpointError(f"{file.parent / GENERATION}: expected an object, got {type(generation).__name__}")
    return Configuration(
        format="mpochain",
        version=description.version,
        tensors=description.tensors,
        sha256=description.sha256,
        layers=description.layers,
        tied=description.tied,
        experts=description.experts,
        model=_HuggingFace(
            library="transformers",
            name=name,
            config={key: value for key, value in data.items() if key not in _OF_THE_FOLDER},
            generation=generation,
            arguments=description.arguments,
        ),
    )


def _is_described(data: Any) -> bool:
    fields = data.get("quantization_config") if isinstance(data, dict) else None
    return isinstance(fields, dict) and fields.get("quant_method") == METHOD


def _require_version(version: Any, where: str) -> None:
    if type(version) is int and version in _READ:
        return
    known = " and ".join(map(str, _READ))
    if type(version) is int and version > VERSION:
        raise CheckpointError(
            f"{where} {version} is newer than this release of mpochain, which reads {known}; update it: "
            "pip install --upgrade mpochain"
        )
    raise CheckpointError(f"{where} {repr(version)[:80]} is unknown; this release reads {known}")


def _validated(kind: type[Fields], data: Any, where: str) -> Fields:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{where}{field}: {first['msg']}") from error


def _required(file: Path, what: str) -> Any:
    try:
        return _read(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{file} cannot be read as {what}: {reason}") from error


def _read(file: Path) -> Any:
    return json.loads(read_bytes(file_within(file.parent, file.name), LONGEST_JSON).decode())
