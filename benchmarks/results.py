"""Benchmark results on disk, one JSON line per finished cell, so that an interrupted run can resume.

Only a run with ``MPOCHAIN_BENCH_RECORD`` set, as by ``make bench``, writes results and skips finished cells. Any other
run is plain pytest-benchmark and measures everything, every time.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import grid
import torch

from mpochain.report import provenance
from mpochain.system.files import write_bytes

FOLDER = Path(os.environ.get("MPOCHAIN_BENCH_RESULTS", str(Path(__file__).parent / "results")))

RECORDING = bool(os.environ.get("MPOCHAIN_BENCH_RECORD"))

# Times measured under other conditions are not reused.
_CIRCUMSTANCES = ("processor", "cpus", "threads", "torch")

# It runs git three times; once per process is enough.
_provenance = cache(provenance)


def _file(group: str) -> Path:
    return FOLDER / f"{group}-{grid.NAME}.jsonl"


@cache
def load(group: str) -> dict[str, dict[str, Any]]:
    """Load the finished cells of a group in the chosen grid, by name."""
    file = _file(group)
    if not file.exists():
        return {}
    return {record["cell"]: record for record in map(json.loads, file.read_text(encoding="utf-8").splitlines())}


def finished(group: str) -> dict[str, dict[str, Any]]:
    """Cells recorded with the same processor, torch version and number of threads, which are not measured again."""
    if not RECORDING:
        return {}
    here = _provenance(threads=torch.get_num_threads(), commit=True)
    return {
        name: record
        for name, record in load(group).items()
        if all(record["provenance"].get(key) == here[key] for key in _CIRCUMSTANCES)
    }


def add(group: str, record: dict[str, Any]) -> None:
    """Append a finished cell with its provenance; if a cell has several records, the last one counts."""
    if not RECORDING:
        return
    known = load(group)
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = {**record, "provenance": _provenance(threads=torch.get_num_threads(), commit=True)}
    with _file(group).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    known[record["cell"]] = record


def rewrite(group: str, records: list[dict[str, Any]]) -> None:
    """Replace all records of a group."""
    write_bytes(_file(group), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    load.cache_clear()
