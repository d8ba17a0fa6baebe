"""The report of one compression: a page with its tables and figures, and the record it is made of."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpochain.compression.records import COLUMNS, CompressionReport
from mpochain.report import Column
from mpochain.report.figures import Series, bars, draw, require_matplotlib
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import write_bytes
from mpochain.workflows.compressing import Compressed

__all__ = ["write_report"]

_SUMMARY = (
    Column("what", ""),
    Column("dense", "dense", ""),
    Column("compressed", "compressed", ""),
    Column("ratio", "ratio", ".3f"),
)


def write_report(folder: Path, outcome: Compressed, command: str, recipe: Mapping[str, Any]) -> list[Path]:
    """Write ``report.json`` and ``report.html``, one file that opens without a network.

    Args:
        folder: is there.
        outcome: of a compression.
        command: that makes it again.
        recipe: everything that decided it, as plain data.

    Returns:
        Both files.

    Raises:
        OutputError: the folder cannot be written.
        MissingDependencyError: matplotlib is missing.
    """
    require_matplotlib()
    record = {"format": 1, "command": command, "recipe": dict(recipe), **outcome.as_dict()}
    files = [folder / "report.json", folder / "report.html"]
    write_bytes(files[0], (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    with tempfile.TemporaryDirectory() as drawn:
        page = Page(
            f"{recipe['model']}, compressed",
            [
                Text((f"Made by `{command}` in {outcome.report.seconds:,.0f} s of compression.",)),
                Table(_SUMMARY, _summary(outcome)),
                *_speed_note(outcome),
                *_figures(outcome.report, Path(drawn)),
                Heading("Layers"),
                *_notes(outcome.report),
                Table(COLUMNS, outcome.report.rows()),
                Heading("Where it was made"),
                Text(origin([outcome.report.provenance])),
            ],
        )
        write_bytes(files[1], page.html().encode())
    return files


def _summary(outcome: Compressed) -> list[dict[str, Any]]:
    report = outcome.report
    rows: list[dict[str, Any]] = []

    def row(what: str, dense: float, compressed: float, style: str) -> None:
        ratio = compressed / dense if dense else None
        rows.append(
            {"what": what, "dense": format(dense, style), "compressed": format(compressed, style), "ratio": ratio}
        )

    row("parameters of the model", *outcome.parameters, ",")
    row("parameters of these layers", report.parameters_before, report.parameters_after, ",")
    layers = report.layers
    row("bytes of these layers", sum(x.bytes_before for x in layers), sum(x.bytes_after for x in layers), ",")
    row("multiply-adds per token", sum(x.macs_before for x in layers), sum(x.macs_after for x in layers), ",")
    if outcome.before is not None and outcome.after is not None:
        row("perplexity", outcome.before.perplexity, outcome.after.perplexity, ".2f")
    if outcome.speed is not None:
        dense, small = outcome.speed["dense"], outcome.speed["compressed"]
        row(f"prefill of {dense.prompt} tokens, ms", dense.prefill * 1e3, small.prefill * 1e3, ".0f")
        row("one token after it, ms", dense.decode * 1e3, small.decode * 1e3, ".1f")
    return rows


def _speed_note(outcome: Compressed) -> list[Block]:
    lines = []
    if outcome.after is not None:
        found = outcome.after
        lines.append(
            f"Perplexity of {found.tokens:,} tokens, {found.windows} windows of {found.window}, stride {found.stride}."
        )
    if outcome.speed is not None:
        layers = outcome.report.layers
        macs = sum(x.macs_after for x in layers) / sum(x.macs_before for x in layers)
        size = sum(x.bytes_after for x in layers) / sum(x.bytes_before for x in layers)
        lines.append(
            f"Predicted for these layers alone: a prefill takes {macs:.2f} of the time, by multiply-adds, and a token "
            f"{size:.2f}, by the bytes that are read. Measured times are of the whole model, in fast execution: "
            f"medians of {outcome.speed['dense'].rounds} rounds, both in turn."
        )
    return [Text(tuple(lines))] if lines else []


def _notes(report: CompressionReport) -> list[Block]:
    lines = [
        f"{len(report.layers)} layers with {report.coverage:.1%} of the model's parameters; method {report.method}, "
        f"budget {report.budget}.",
        *(f"Not looked at: {name}, {count:,} parameters." for name, count in report.untouched),
    ]
    return [Text(tuple(lines))]


def _figures(report: CompressionReport, folder: Path) -> list[Block]:
    places = _places(report)
    depths = sorted({depth for depth, _ in places})
    labels = [str(depth) if depth >= 0 else "other" for depth in depths]

    def total(field: str) -> list[float]:
        return [
            sum(getattr(layer, field) for layer, (at, _) in zip(report.layers, places, strict=True) if at == depth)
            / 1e6
            for depth in depths
        ]

    bars(
        folder / "parameters.png",
        labels,
        {"before": total("parameters_before"), "after": total("parameters_after")},
        title="Parameters by depth",
        x="block",
        y="millions of parameters",
    )
    found: list[Block] = [
        Heading("By depth"),
        Figure(folder / "parameters.png", "Parameters before and after, by block"),
    ]
    known = report.layers[0].output_error is not None
    field, what = ("output_error", "output") if known else ("weight_error", "weight")
    series: dict[str, list[tuple[int, float]]] = {}
    for layer, (depth, role) in zip(report.layers, places, strict=True):
        series.setdefault(role, []).append((max(depth, 0), getattr(layer, field)))
    draw(
        folder / "errors.png",
        [Series(role, [x for x, _ in points], [y for _, y in points]) for role, points in series.items()],
        title=f"Relative error of the {what} by depth",
        x="block",
        y=f"relative {what} error",
    )
    found.append(Figure(folder / "errors.png", f"Relative {what} error of each layer, by block"))
    costly = [(share, rise) for share, rise in report.frontier if rise > 0]
    if costly:
        left = report.parameters_after / report.parameters_before
        spent = sum(layer.loss_increase or 0.0 for layer in report.layers)
        draw(
            folder / "frontier.png",
            [
                Series("other budgets", [x for x, _ in costly], [y for _, y in costly]),
                Series("this one", [left], [spent], line=False),
            ],
            title="What a budget costs",
            x="share of these layers' parameters",
            y="predicted rise of the loss, nats per token",
            axes={"yscale": "log"},
        )
        found += [
            Heading("Budget and quality"),
            Text(
                (
                    "Predicted to second order from the calibration data, layer by layer; where it says more than some "
                    "tenths of a nat, read it as an order of budgets and not as a number.",
                )
            ),
            Figure(folder / "frontier.png", "Predicted rise of the loss for other budgets"),
        ]
    return found


def _places(report: CompressionReport) -> Sequence[tuple[int, str]]:
    """Block and role of each layer, from the first number in its name; -1 for layers of no block."""
    places = []
    for layer in report.layers:
        found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer.name)
        depth = int(found[1]) if found else -1
        role = layer.name[found.end() :] if found else layer.name
        places.append((depth, role or layer.name))
    return places
