"""The records of a study as files, checked when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mpochain.errors import CheckpointError
from mpochain.picogpt.study.settings import RunSetting

__all__ = ["FORMAT", "read_part", "read_record"]

FORMAT = 1


class _Corpus(BaseModel):
    name: str
    sha256: str


class _Training(BaseModel):
    curve: list[tuple[int, float, dict[str, float]]]
    losses: list[float]
    tokens_per_second: float
    # How weights with a rate of their own shrink; "with the rates" is of runs that are older than the other way.
    decay: Literal["alike", "with the rates"]


class _Validation(BaseModel):
    loss: float
    accuracy: float


class _Record(BaseModel):
    """What a page takes from a run; a record holds more."""

    model_config = ConfigDict(extra="allow")

    format: int
    setting: dict[str, Any]
    corpus: _Corpus
    parameters: int
    block_parameters: int
    macs_per_token: int
    fewest_macs_per_token: int
    training: _Training | None
    validation: _Validation
    provenance: dict[str, Any]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and run the study again") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} is damaged (no object); remove it and run the study again")
    return record


def read_record(file: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    record = _read(file)
    version = record.get("format")
    if version is not None and version != FORMAT:
        raise CheckpointError(f"{file} is of format {version!r}, this version writes {FORMAT}; use another folder")
    try:
        _Record.model_validate(record)
        # With the defaults of what there was no choice of when the run was made.
        record["setting"] = RunSetting.model_validate(record["setting"]).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file} is damaged ({where}: {first['msg']}); remove it and run it again") from error
    return record


def read_part(file: Path, part: str) -> tuple[Any, dict[str, Any]]:
    """Times or errors of a preset, and where they came from.

    Raises:
        CheckpointError: the file is damaged.
    """
    record = _read(file)
    if not record.get(part) or not isinstance(record.get("provenance"), dict):
        raise CheckpointError(f"{file} is damaged (no {part}); remove it and run the study again")
    return record[part], record["provenance"]
