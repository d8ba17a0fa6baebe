"""Summary of a compression report: sizes first, then the layers grouped by kind, within the width of a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mpochain.compression.methods.table import default_method
from mpochain.report.table import Column, text_within
from mpochain.system.sizes import megabytes, millions
from mpochain.wording import counted

if TYPE_CHECKING:
    from mpochain.compression.records import CompressionReport, LayerRecord

__all__ = ["GROUP_COLUMNS", "grouped", "summary", "wrapped"]

# In the order of a reader; the second list names the columns that are left out first where there is no room.
GROUP_COLUMNS = (
    Column("kind", "layers"),
    Column("count", "number", ","),
    Column("forms", "become"),
    Column("bytes_before", "before"),
    Column("bytes_after", "after"),
    Column("share", "share", ".0%"),
    Column("bits", "bits", ".2f"),
    Column("weight_error", "weight error", ".3f"),
    Column("output_error", "output error", ".3f"),
    Column("loss_increase", "loss +", ".4f"),
)
_LEAST_IMPORTANT = ("weight_error", "bytes_before", "bits", "loss_increase", "bytes_after", "forms", "output_error")

# Characters of a form that are always shown.
_SHORTEST_FORM = 20


def grouped(layers: Iterable[LayerRecord]) -> list[dict[str, Any]]:
    """One row for all layers whose names differ only in numbers, with values for :data:`GROUP_COLUMNS`.

    Errors are means over the layers; the increase of the loss is their sum.
    """
    groups: dict[str, list[LayerRecord]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r"(?:(?<=\.)|^)\d+(?=\.|$)", "*", layer.name), []).append(layer)
    return [
        {
            # A group of one layer has its own name.
            "kind": kind if len(records) > 1 else records[0].name,
            "count": len(records),
            "forms": _forms([record.form for record in records]),
            "bytes_before": megabytes(sum(record.bytes_before for record in records)),
            "bytes_after": megabytes(sum(record.bytes_after for record in records)),
            "share": sum(record.bytes_after for record in records) / sum(record.bytes_before for record in records),
            "bits": 8
            * sum(record.bytes_after for record in records)
            / sum(record.parameters_before for record in records),
            "weight_error": _mean([record.weight_error for record in records]),
            "output_error": _mean([record.output_error for record in records]),
            "loss_increase": _sum([record.loss_increase for record in records]),
        }
        for kind, records in groups.items()
    ]


def summary(report: CompressionReport, width: int = 100) -> str:
    """The report as text: sizes and errors of the model, then one line per kind of layer.

    Args:
        report: of a compression.
        width: characters per line.
    """
    longest = max(width // 3, _SHORTEST_FORM)
    rows = [{**row, "forms": _shortened(row["forms"], longest)} for row in grouped(report.layers)]
    columns = [column for column in GROUP_COLUMNS if any(row[column.key] is not None for row in rows)]
    lines = [
        *(wrapped(line, width) for line in _totals(report)),
        "",
        text_within(columns, rows, width, _LEAST_IMPORTANT),
    ]
    notes = [wrapped(note, width) for note in report.notes()]
    return "\n".join([*lines, "", *notes] if notes else lines)


def wrapped(line: str, width: int) -> str:
    """A line broken into lines of at most ``width`` characters, the further ones indented; long names stay as they are.

    Example:
        >>> print(wrapped("stays dense: it has one row", 16))
        stays dense: it
          has one row
    """
    return "\n".join(textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def _totals(report: CompressionReport) -> list[str]:
    before, after = report.parameters_before, report.parameters_after
    model = report.model_parameters
    budget = "" if report.budget is None else f", budget {report.budget}"
    if report.speed is not None:
        budget += f", speed {report.speed}"
    default = (
        " (the default of this kind of budget)" if report.method == "auto" == default_method(report.budget) else ""
    )
    lines = [
        f"method {report.method}{default}{budget}; {counted(len(report.layers), 'layer')} with "
        f"{report.coverage:.1%} of the parameters",
        f"whole model: {_change(report.model_bytes, report.model_bytes_after, megabytes)}",
        f"parameters: {_change(model, model - before + after, millions)}",
        f"these layers: {_change(report.bytes_before, report.bytes_after, megabytes)}, "
        f"{report.bits_per_weight:.2f} bits per weight",
    ]
    if report.macs_after != report.macs_before:
        lines.append(f"multiply-adds per row: {_change(report.macs_before, report.macs_after, millions)}")
    increase = _sum([layer.loss_increase for layer in report.layers])
    if increase is not None:
        lines.append(f"predicted increase of the loss: {increase:.4f} nats per token")
    return lines


def _change(before: float, after: float, style: Callable[[float], str]) -> str:
    share = f" ({after / before:.1%})" if before else ""
    return f"{style(before)} before, {style(after)} after{share}"


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _forms(forms: Sequence[str]) -> str:
    """Forms of several layers in few words, with the range of each number.

    Example:
        >>> _forms(["rank 12, interpolative", "rank 30, interpolative", "dense"])
        '2 rank 12-30, interpolative; 1 dense'
    """
    by_pattern: dict[str, list[list[str]]] = {}
    for form in forms:
        by_pattern.setdefault(re.sub(r"\d+", "#", form), []).append(re.findall(r"\d+", form))
    parts = []
    for pattern, numbers in by_pattern.items():
        form = pattern
        for column in zip(*numbers, strict=True):
            form = form.replace("#", _range([int(number) for number in column]), 1)
        parts.append(form if len(by_pattern) == 1 else f"{len(numbers)} {form}")
    return "; ".join(parts)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"
