"""Records of the runs of a comparison, one JSON file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError
from mpochain.system.reading import read_bytes
from mpochain.workflows.former_names import current_record

__all__ = ["FORMAT", "read_run", "read_runs"]

FORMAT = 1

# Largest record that is read, in bytes.
_LONGEST = 256 << 20

_FIELDS = {"name", "setting", "perplexity", "provenance", "peak_bytes", "seconds"}


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of all finished runs of a comparison, by run name.

    Raises:
        CheckpointError: see :func:`read_run`.
    """
    records = (read_run(file) for file in sorted(folder.glob("*.json")))
    return {record["name"]: record for record in records}


def read_run(file: Path) -> dict[str, Any]:
    """Read the record of a run, with former names replaced by current ones.

    Raises:
        CheckpointError: the record is damaged, or has another format.
    """
    try:
        record = json.loads(read_bytes(file, _LONGEST).decode())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); remove it and run the comparison again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not set(record) >= _FIELDS:
        raise CheckpointError(f"{file} is damaged or has another format; remove it and run the comparison again")
    return current_record(record)
