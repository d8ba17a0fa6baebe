"""Compression report as JSON and as an HTML page with tables and figures."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpochain.compression.records import COLUMNS, CompressionReport
from mpochain.report import Column
from mpochain.report.figures import Series, bars, draw, require_matplotlib
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import write_bytes
from mpochain.system.sizes import megabytes
from mpochain.wording import counted
from mpochain.workflows.compressed import Compressed
from mpochain.workflows.json_file import write_json

__all__ = ["write_report"]

_SUMMARY = (
    Column("what", ""),
    Column("dense", "dense", ""),
    Column("compressed", "compressed", ""),
    Column("ratio", "ratio", ".3f"),
)


def write_report(folder: Path, result: Compressed, command: str, recipe: Mapping[str, Any]) -> list[Path]:
    """Write ``report.json`` and ``report.html``, a single file that needs no network.

    Args:
        folder: existing folder.
        result: result of a compression.
        command: command that reproduces the result.
        recipe: everything that determines the result, as plain data.

    Returns:
        Both files.

    Raises:
        OutputError: the folder is not writable.
        MissingDependencyError: matplotlib is missing.
    """
    require_matplotlib()
    files = [folder / "report.json", folder / "report.html"]
    write_json(files[0], {"format": 1, "command": command, "recipe": dict(recipe), **result.as_dict()})
    with tempfile.TemporaryDirectory() as figures:
        blocks: list[Block] = [Text((f"Made by `{command}` in {result.report.seconds:,.0f} s of compression.",))]
        for section in _SECTIONS:
            blocks += section(result, Path(figures))
        write_bytes(files[1], Page(f"{recipe['model']}, compressed", blocks).html().encode())
    return files


def _summary(result: Compressed, figures: Path) -> list[Block]:  # noqa: ARG001  # one of the sections
    report = result.report
    rows: list[dict[str, Any]] = []

    def size_row(what: str, dense: int | None, compressed: int | None) -> None:
        ratio = compressed / dense if dense and compressed is not None else None
        cells = ["-" if number is None else megabytes(number) for number in (dense, compressed)]
        rows.append({"what": what, "dense": cells[0], "compressed": cells[1], "ratio": ratio})

    def row(what: str, dense: float, compressed: float, style: str) -> None:
        ratio = compressed / dense if dense else None
        rows.append(
            {"what": what, "dense": format(dense, style), "compressed": format(compressed, style), "ratio": ratio}
        )

    size_row("file with the weights", *result.file_bytes)
    size_row("model in memory", *result.model_bytes)
    row("parameters of the model", *result.parameters, ",")
    row("parameters of these layers", report.parameters_before, report.parameters_after, ",")
    size_row("these layers", _total(report, "bytes_before"), _total(report, "bytes_after"))
    row("multiply-adds per token", _total(report, "macs_before"), _total(report, "macs_after"), ",")
    if result.before is not None and result.after is not None:
        row("perplexity", result.before.perplexity, result.after.perplexity, ".2f")
    for name, (before, after) in result.also.items():
        if before is not None:
            row(f"perplexity on {name}", before.perplexity, after.perplexity, ".2f")
    notes = [f"No {what}: {reason}." for what, reason in result.problems.items()]
    if result.after is not None:
        after = result.after
        of = "" if result.windows is None else f" of {result.windows[1]:,}"
        notes.append(
            f"Perplexity of {after.tokens:,} tokens, {after.windows}{of} windows of {after.window}, "
            f"stride {after.stride}."
        )
    if result.peak_bytes is not None:
        notes.append(f"Peak memory of the compression, with libraries: {megabytes(result.peak_bytes)}.")
    if result.speed is not None:
        dense, compressed = result.speed["dense"], result.speed["compressed"]
        row(f"prefill of {dense.prompt} tokens, ms", dense.prefill * 1e3, compressed.prefill * 1e3, ".0f")
        row("one generated token, ms", dense.decode * 1e3, compressed.decode * 1e3, ".1f")
        macs = _total(report, "macs_after") / _total(report, "macs_before")
        size = _total(report, "bytes_after") / _total(report, "bytes_before")
        notes.append(
            f"Prediction for these layers alone: a prefill takes {macs:.2f} of the dense time (ratio of multiply-adds) "
            f"and a token {size:.2f} (ratio of bytes read). Measured times are for the whole model in fast execution: "
            f"medians of {dense.rounds} rounds, dense and compressed in turn."
        )
    return [Table(_SUMMARY, rows), *([Text(tuple(notes))] if notes else [])]


def _texts(result: Compressed, figures: Path) -> list[Block]:  # noqa: ARG001  # one of the sections
    if not result.texts:
        return []
    blocks: list[Block] = [
        Heading("Generated text"),
        Text(("Greedy decoding, with the same maximum number of tokens for both models.",)),
    ]
    for text in result.texts:
        blocks += [Heading(text.prompt, 3), Text((f"Dense: {text.dense}", f"Compressed: {text.compressed}"))]
    return blocks


def _by_depth(result: Compressed, figures: Path) -> list[Block]:
    report = result.report
    positions = _positions(report)
    depths = sorted({depth for depth, _ in positions})

    def millions(field: str) -> list[float]:
        return [
            sum(
                getattr(layer, field)
                for layer, (layer_depth, _) in zip(report.layers, positions, strict=True)
                if layer_depth == depth
            )
            / 1e6
            for depth in depths
        ]

    bars(
        figures / "parameters.png",
        [str(depth) if depth >= 0 else "other" for depth in depths],
        {"before": millions("parameters_before"), "after": millions("parameters_after")},
        title="Parameters by depth",
        x="block",
        y="millions of parameters",
    )
    error, of = ("output_error", "output") if report.layers[0].output_error is not None else ("weight_error", "weight")
    series: dict[str, list[tuple[int, float]]] = {}
    for layer, (depth, role) in zip(report.layers, positions, strict=True):
        series.setdefault(role, []).append((max(depth, 0), getattr(layer, error)))
    draw(
        figures / "errors.png",
        [Series(role, [x for x, _ in points], [y for _, y in points]) for role, points in series.items()],
        title=f"Relative error of the {of} by depth",
        x="block",
        y=f"relative {of} error",
    )
    return [
        Heading("By depth"),
        Figure(figures / "parameters.png", "Parameters before and after, by block"),
        Figure(figures / "errors.png", f"Relative {of} error of each layer, by block"),
    ]


def _other_budgets(result: Compressed, figures: Path) -> list[Block]:
    report = result.report
    points = [(share, increase) for share, increase in report.frontier if increase > 0]
    if not points:
        return []
    share = report.parameters_after / report.parameters_before
    increase = sum(layer.loss_increase or 0.0 for layer in report.layers)
    draw(
        figures / "frontier.png",
        [
            Series("other budgets", [x for x, _ in points], [y for _, y in points]),
            Series("this run, as made", [share], [increase], line=False),
        ],
        title="Predicted loss for other budgets",
        x="share of these layers' parameters",
        y="predicted increase of the loss, nats per token",
        axes={"yscale": "log"},
    )
    return [
        Heading("Budget and quality"),
        Text(
            (
                "Predicted to second order from the calibration data, layer by layer. A prediction above a few tenths "
                "of a nat still ranks budgets but does not estimate the loss. The curve is that of the planned ranks. "
                "The single point is this run: its layers as they were made. It lies off the curve where fits to the "
                "inputs were better than planned, or where layers were fitted after others had been compressed.",
            )
        ),
        Figure(figures / "frontier.png", "Predicted increase of the loss for other budgets"),
    ]


def _layers(result: Compressed, figures: Path) -> list[Block]:  # noqa: ARG001  # one of the sections
    report = result.report
    lines = [
        f"{counted(len(report.layers), 'layer')} with {report.coverage:.1%} of the model's parameters; "
        f"method {report.method}, budget {report.budget}.",
        *(f"Not compressed: {name}, {count:,} parameters." for name, count in report.untouched),
    ]
    return [Heading("Layers"), Text(tuple(lines)), Table(COLUMNS, report.rows())]


def _provenance(result: Compressed, figures: Path) -> list[Block]:  # noqa: ARG001  # one of the sections
    return [Heading("Provenance"), Text(origin([result.report.provenance]))]


# Sections in page order. Each takes the result and a folder for figures, and returns no blocks if it has no content.
_SECTIONS: tuple[Callable[[Compressed, Path], list[Block]], ...] = (
    _summary,
    _texts,
    _by_depth,
    _other_budgets,
    _layers,
    _provenance,
)


def _total(report: CompressionReport, field: str) -> int:
    return sum(getattr(layer, field) for layer in report.layers)


def _positions(report: CompressionReport) -> list[tuple[int, str]]:
    """Block number and role of each layer, parsed from its name; block -1 for a layer outside the blocks."""
    positions = []
    for layer in report.layers:
        block = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer.name)
        role = layer.name[block.end() :] if block else layer.name
        positions.append((int(block[1]) if block else -1, role or layer.name))
    return positions
