"""Configuration file of a checkpoint: its fields, and its validation."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpochain.errors import CheckpointError

__all__ = ["CONFIG", "TENSORS", "VERSION", "Configuration", "digest", "is_checkpoint", "read_configuration"]

VERSION = 1
CONFIG = "config.json"
_LONGEST_CONFIG = 64 << 20
TENSORS = re.compile(r"model-[0-9a-f]{16}\.safetensors")


class _HuggingFace(BaseModel):
    model_config = ConfigDict(extra="forbid")

    library: Literal["transformers"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=200)]
    config: dict[str, Any]


class Configuration(BaseModel):
    """Fields of ``config.json``.

    Attributes:
        format: always ``"mpochain"``.
        version: version of the format.
        tensors: name of the file of tensors.
        sha256: SHA-256 of that file.
        layers: entry of each compressed layer, by its name in the model.
        tied: maps the name of each tied tensor to the name under which it is stored.
        model: class and configuration of a Hugging Face model; None for other models.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["mpochain"]
    version: int
    tensors: Annotated[str, Field(pattern=TENSORS.pattern)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    layers: dict[str, Any]
    tied: dict[str, str]
    model: _HuggingFace | None


def is_checkpoint(folder: Path) -> bool:
    """True if the folder's ``config.json`` has the format of this library; the tensors are not checked."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == "mpochain"


def read_configuration(file: Path) -> Configuration:
    """Read and validate the configuration of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, too large or of another version. The message names the field.
    """
    try:
        if file.stat().st_size > _LONGEST_CONFIG:
            raise CheckpointError(f"{file} is too large for a configuration, over {_LONGEST_CONFIG >> 20} MiB")
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as the configuration of a checkpoint: {error}") from error
    if isinstance(data, dict) and data.get("format") != "mpochain":
        raise CheckpointError(
            f"{file}: format is {data.get('format')!r}, expected 'mpochain' (a compressed model's checkpoint)"
        )
    if isinstance(data, dict) and data.get("version") != VERSION:
        raise CheckpointError(f"{file}: version {data.get('version')!r} is unknown; this release reads {VERSION}")
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file}: {where}: {first['msg']}") from error


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal; the file is read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
