"""JSON records of the study's runs, validated when they are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mpochain.errors import CheckpointError
from studies.picogpt.study.settings import RunSetting

__all__ = ["FORMAT", "read_part", "read_record", "setting_as_dict"]

FORMAT = 2


class _Corpus(BaseModel):
    name: str
    sha256: str


class _Training(BaseModel):
    curve: list[tuple[int, float, dict[str, float]]]
    losses: list[float]
    tokens_per_second: float
    # Weight decay of parameters with a scaled learning rate; in the oldest runs it was scaled with the rate.
    decay: Literal["alike", "with the rates"]


class _Validation(BaseModel):
    loss: float
    accuracy: float


class _Record(BaseModel):
    """Fields of a record that the page reads; a record has more."""

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


def setting_as_dict(setting: RunSetting) -> dict[str, Any]:
    """Fields of a setting for JSON, with the name of its row for readers of the file.

    Example:
        >>> from studies.picogpt.design import Design
        >>> setting_as_dict(RunSetting(design=Design(), kind="cut", config=None))["row"]
        'dense'
    """
    return {"row": setting.row, **setting.model_dump(mode="json")}


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of a run, with its setting as a :class:`studies.picogpt.study.settings.RunSetting`.

    Raises:
        CheckpointError: the record is damaged, or has another format.
    """
    record = _read(file)
    version = record.get("format", FORMAT)
    if version not in (1, FORMAT):
        raise CheckpointError(f"{file} has format {version!r}, but this version writes {FORMAT}; use another folder")
    try:
        _Record.model_validate(record)
        row = str(record["setting"].pop("row", ""))
        fields = record["setting"] | (_fields_of_format_1(row, record["setting"]) if version == 1 else {})
        setting = RunSetting.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file} is damaged ({where}: {first['msg']}); remove it and run it again") from error
    if setting.row != row:
        message = f"its fields belong to the row {setting.row!r}, but its name is {row!r}"
        raise CheckpointError(f"{file} is damaged ({message}); remove it and run it again")
    return record | {"setting": setting}


def _fields_of_format_1(row: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Parse the fields that format 1 stored only in the name of the row. No other code parses a name."""
    bond = re.search(r"χ=(\d+)", row)
    if fields.get("config") is None:
        kind = "cut"
    elif re.search(r", \d+ steps at ", row):
        kind = "search"
    else:
        kind = "finetuned" if re.search(r"(,| and) \d+ steps", row) else "trained"
    return {"bond": int(bond[1]) if bond else None, "kind": kind}


def read_part(file: Path, part: str) -> tuple[Any, dict[str, Any]]:
    """Read the times or errors of a preset, and their provenance.

    Raises:
        CheckpointError: the file is damaged.
    """
    record = _read(file)
    if not record.get(part) or not isinstance(record.get("provenance"), dict):
        raise CheckpointError(f"{file} is damaged (no {part}); remove it and run the study again")
    return record[part], record["provenance"]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and run the study again") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} is damaged (no object); remove it and run the study again")
    return record
