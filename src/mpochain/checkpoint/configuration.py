"""Configuration file of a checkpoint: its fields, and its validation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpochain.errors import CheckpointError
from mpochain.system.reading import file_within, read_bytes, sha256_of

__all__ = ["CONFIG", "TENSORS", "VERSION", "Configuration", "is_checkpoint", "read_configuration", "tensors_file"]

VERSION = 1
CONFIG = "config.json"
_LONGEST_CONFIG = 64 << 20
TENSORS = re.compile(r"model-[0-9a-f]{16}\.safetensors")


class _HuggingFace(BaseModel):
    model_config = ConfigDict(extra="forbid")

    library: Literal["transformers"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=200)]
    config: dict[str, Any]
    generation: dict[str, Any] | None = None
    arguments: dict[str, bool] = {}


class Configuration(BaseModel):
    """Fields of ``config.json``.

    Attributes:
        format: always ``"mpochain"``.
        version: version of the format.
        tensors: name of the file of tensors.
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
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    layers: dict[str, Any]
    tied: dict[str, str]
    buffers: list[str] = []
    experts: list[str] = []
    model: _HuggingFace | None


def is_checkpoint(folder: Path) -> bool:
    """True if the folder's ``config.json`` has the format of this library; the tensors are not checked."""
    try:
        data = _read(folder / CONFIG)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == "mpochain"


def read_configuration(file: Path) -> Configuration:
    """Read and validate the configuration of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, too large, not a regular file of its folder, or of another
            version. The message names the field.
    """
    try:
        data = _read(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{file} cannot be read as the configuration of a checkpoint: {reason}") from error
    if isinstance(data, dict) and data.get("format") != "mpochain":
        raise CheckpointError(
            f"{file}: format is {repr(data.get('format'))[:80]}, expected 'mpochain' (a compressed model's checkpoint)"
        )
    if isinstance(data, dict) and data.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: version {repr(data.get('version'))[:80]} is unknown; this release reads {VERSION}"
        )
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file}: {where}: {first['msg']}") from error


def tensors_file(folder: Path, config: Configuration) -> tuple[Path, bool]:
    """Return the file of tensors of a checkpoint, and whether its hash is the one that the configuration states.

    Raises:
        CheckpointError: the file is missing, cannot be read, or is not a regular file of the folder.
    """
    try:
        path = file_within(folder, config.tensors)
        return path, sha256_of(path) == config.sha256
    except OSError as error:
        raise CheckpointError(f"{folder / config.tensors} cannot be read: {error.strerror or error}") from error


def _read(file: Path) -> Any:
    return json.loads(read_bytes(file_within(file.parent, file.name), _LONGEST_CONFIG).decode())
