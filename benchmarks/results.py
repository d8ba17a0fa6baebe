"""Results on disk, one JSON line per finished cell, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import grid
import torch

from mpochain.atomic import write_bytes
from mpochain.report import provenance

FOLDER = Path(os.environ.get("MPOCHAIN_BENCH_RESULTS", str(Path(__file__).parent / "results")))

# Asks git three times; once a process is enough.
_provenance = cache(provenance)


def _file(group: str) -> Path:
    return FOLDER / f"{group}-{grid.NAME}.jsonl"


@cache
def load(group: str) -> dict[str, dict[str, Any]]:
    """Finished cells of a group in the chosen grid, by name."""
    file = _file(group)
    if not file.exists():
        return {}
    return {record["cell"]: record for record in map(json.loads, file.read_text(encoding="utf-8").splitlines())}


def add(group: str, record: dict[str, Any]) -> None:
    """Append a finished cell with where it came from."""
    finished = load(group)
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = {**record, "provenance": _provenance(threads=torch.get_num_threads())}
    with _file(group).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    finished[record["cell"]] = record


def rewrite(group: str, records: list[dict[str, Any]]) -> None:
    """Keep these cells of a group and no others."""
    write_bytes(_file(group), "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records).encode())
    load.cache_clear()
