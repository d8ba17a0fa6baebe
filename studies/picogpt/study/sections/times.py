"""Page section on times: forward passes, training steps, and accuracy against time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Table, Text
from studies.picogpt.design import Design
from studies.picogpt.model import PicoGPT
from studies.picogpt.study.records import read_part
from studies.picogpt.study.sections.accuracy import accuracy_series

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
    """Blocks on the times of a preset's designs; none before they are measured.

    Args:
        name: name of the preset.
        rows: rows of its table.
        folder: folder with its records.
        figures: folder for the figures.
    """
    if not (folder / "timing.json").exists():
        return []
    part, provenance = read_part(folder / "timing.json", "timing")
    many = part["sequences"]
    table, fastest = [], {}
    dense = next(record["step_rounds"] for record in part["designs"] if Design(**record["design"]) == Design())
    for record in part["designs"]:
        design = Design(**record["design"])
        # Dense layers run in only one way.
        milliseconds = {
            key: record[f"{key}_seconds"] * 1e3 if f"{key}_seconds" in record else None for key in _MILLISECONDS
        }
        tokens = many * PicoGPT.context / record["step_seconds"]
        peak = record.get("step_peak_bytes")  # older records lack it
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
        accuracy_series(
            [{**row, "milliseconds": fastest.get(row["design"])} for row in rows], "milliseconds", named=True
        ),
        title="Validation accuracy against time (bars: all seeds)",
        x=f"ms for {many} sequences of 256 tokens, the better of compact and fast",
        y="token accuracy",
        note="number beside a point: the χ whose size the model has",
    )
    return [
        Heading("Times", 3),
        Text(
            (
                f"Medians of forward passes over 1 and {many} sequences of 256 tokens, compact (merged cores "
                "recomputed) and fast (merged cores kept), with measured plans and PyTorch's own products; and of a "
                f"training step on {many} sequences, as in the study's training, with the faster library of products "
                "on this machine for all designs. All designs were timed in turn in one run; ratios of steps are to "
                "the dense step of the same round. MiB step: additional peak memory during a step.",
                _bfloat16(part["designs"]),
            )
        ),
        Text(origin([provenance])),
        Table(_COLUMNS, table),
        Figure(file, "Validation accuracy against time"),
    ]


def _ratio(record: dict[str, Any], dense: list[float]) -> float:
    """Median over rounds of the ratio of a step's seconds to the dense step's."""
    return statistics.median(step / dense_step for step, dense_step in zip(record["step_rounds"], dense, strict=True))


def _bfloat16(designs: list[dict[str, Any]]) -> str:
    gains = [
        statistics.median(
            single / half for single, half in zip(record["step_rounds"], record["step_bfloat16_rounds"], strict=True)
        )
        for record in designs
    ]
    return f"Under bfloat16 autocast, steps are {min(gains):.2f} to {max(gains):.2f} times as fast as in float32."
