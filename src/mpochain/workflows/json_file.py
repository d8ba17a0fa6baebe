"""JSON files of results, replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.system.files import write_bytes

__all__ = ["write_json"]


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record that people read too: one field a line, text as it is.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
