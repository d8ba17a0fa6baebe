"""JSON result files, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.system.files import write_bytes

__all__ = ["write_json"]


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON: one field per line, text unescaped.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
