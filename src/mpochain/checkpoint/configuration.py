"""Configuration of a checkpoint: its fields, and reading it."""

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
    """What ``config.json`` says.

    Attributes:
        format: this library's.
        version: of the format.
        tensors: name of the file of tensors.
        sha256: of that file.
        layers: entry of each compressed layer, by its name in the model.
        tied: names of tensors that are another one.
        model: class and configuration of a model of transformers.
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
    """Whether a folder holds a checkpoint of this library, as far as its configuration says."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == "mpochain"


def read_configuration(file: Path) -> Configuration:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, too large or of another version, naming the field.
    """
    try:
        if file.stat().st_size > _LONGEST_CONFIG:
            raise CheckpointError(f"{file} is larger than {_LONGEST_CONFIG >> 20} MiB, which no configuration is")
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as the configuration of a checkpoint: {error}") from error
    if isinstance(data, dict) and data.get("format") != "mpochain":
        raise CheckpointError(
            f"{file}: format is {data.get('format')!r}, not 'mpochain': no checkpoint of a compressed model"
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
    """The sha256 of a file, which is read piece by piece."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
