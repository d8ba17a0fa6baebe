"""What the models cost in time, and accuracy against it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mpochain.picogpt.design import Design
from mpochain.picogpt.model import PicoGPT
from mpochain.picogpt.study.records import read_part
from mpochain.picogpt.study.sections.accuracy import accuracy_series
from mpochain.report import Column
from mpochain.report.figures import draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Table, Text

__all__ = ["times"]

_COLUMNS = (
    Column("design", "linears"),
    Column("compact_one", "ms one, compact", ".1f"),
    Column("fast_one", "ms one, fast", ".1f"),
    Column("compact_many", "ms many, compact", ".0f"),
    Column("fast_many", "ms many, fast", ".0f"),
    Column("step", "ms step", ".0f"),
    Column("of_dense", "of dense step", ".2f"),
    Column("step_bfloat16", "ms step, bfloat16", ".0f"),
    Column("tokens", "training tokens/s", ",.0f"),
    Column("mib", "MiB step", ",.0f"),
)
_MILLISECONDS = ("compact_one", "fast_one", "compact_many", "fast_many", "step", "step_bfloat16")


def times(name: str, rows: list[dict[str, Any]], folder: Path, figures: Path) -> list[Block]:
    """The times of the designs of a preset; nothing while they have not been measured.

    Args:
        name: of the preset.
        rows: of its table.
        folder: of its records.
        figures: folder to draw in.
    """
    if not (folder / "timing.json").exists():
        return []
    part, provenance = read_part(folder / "timing.json", "timing")
    many = part["sequences"]
    table, fastest = [], {}
    dense = next(each["step_rounds"] for each in part["designs"] if Design(**each["design"]) == Design())
    for record in part["designs"]:
        design = Design(**record["design"])
        # Dense linears run in one way only.
        milliseconds = {
            key: record[f"{key}_seconds"] * 1e3 if f"{key}_seconds" in record else None for key in _MILLISECONDS
        }
        tokens = many * PicoGPT.context / record["step_seconds"]
        peak = record.get("step_peak_bytes")  # not in times of older versions
        table.append(
            {
                "design": str(design),
                **milliseconds,
                "of_dense": _ratio(record, dense),
                "tokens": tokens,
                "mib": peak / 2**20 if peak else None,
            }
        )
        fastest[design] = min(value for key in ("compact_many", "fast_many") if (value := milliseconds[key]))
    file = figures / f"study-{name}-time.png"
    draw(
        file,
        accuracy_series([{**row, "milliseconds": fastest.get(row["design"])} for row in rows], "milliseconds"),
        title="Validation accuracy against time (bars: all seeds)",
        x=f"ms for {many} sequences of 256 tokens, the better of compact and fast",
        y="token accuracy",
    )
    return [
        Heading("Times", 3),
        Text(
            (
                f"Medians of forward passes over 1 and {many} sequences of 256 tokens, compact (merged cores made "
                "anew) and fast (kept), by plans that are measured and PyTorch's own products; and of a training step "
                f"of {many} as the study makes it, by whichever library has the faster products here, for all alike. "
                "All designs in turn in one run; steps beside the dense step of the same round. MiB step: what a step "
                "takes at most beyond what was alive before it.",
                _bfloat16(part["designs"]),
            )
        ),
        Text(origin([provenance])),
        Table(_COLUMNS, table),
        Figure(file, "Validation accuracy against time"),
    ]


def _ratio(record: dict[str, Any], dense: list[float]) -> float:
    return statistics.median(mine / its for mine, its in zip(record["step_rounds"], dense, strict=True))


def _bfloat16(designs: list[dict[str, Any]]) -> str:
    gains = [
        statistics.median(
            whole / half for whole, half in zip(each["step_rounds"], each["step_bfloat16_rounds"], strict=True)
        )
        for each in designs
    ]
    return f"Under bfloat16 autocast steps are {min(gains):.2f} to {max(gains):.2f} times as fast as in float32."
