"""Page of a frontier in Markdown and HTML, with its figure, generated from the records of its points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.compression import method_named
from mpochain.errors import OutputError
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Figure, Heading, Page, Table, Text
from mpochain.system.files import require_writable, write_bytes
from mpochain.workflows.frontier_records import DENSE, read_frontier
from mpochain.workflows.frontier_summary import other_text, summary
from mpochain.workflows.texts import counted_windows

__all__ = ["write_frontier"]

# Models above this multiple of the dense perplexity are only in the table.
_WORST = 10

_REFINED = ", refined"

_PREFACE = (
    "Generated from the records by `mpochain frontier --page-only`; not edited by hand. Sizes are those of the "
    "compressed layers: codes, scales, zero points and indices as they are stored, in megabytes and in bits per "
    "weight. Methods without few bits, such as SVD-LLM, are counted as if their factors were stored in 16 bits."
)
_PREDICTION = (
    "*Predicted* is the increase of the loss that the calibration predicts, in nats per token; *measured* is that on "
    "the first text."
)

_Record = Mapping[str, Any]


def write_frontier(out: Path, page: Path, *, title: str = "Perplexity against size") -> list[Path]:
    """Write the page as Markdown and HTML in one folder, and the figure in its subfolder ``figures``.

    Args:
        out: folder of the records.
        page: the Markdown file.
        title: title of the page.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: the dense model has no record, or a record is damaged.
        OutputError: the page is not named ``.md``, or its folder is not writable.
        MissingDependencyError: matplotlib is missing.
    """
    if page.suffix != ".md":
        raise OutputError(f"the page must be a Markdown file; name it {page.with_suffix('.md').name}")
    records = read_frontier(out)
    dense = records.pop(DENSE)
    texts = list(dense["perplexity"])
    rows = _rows(records, dense, texts)
    figure = require_writable(page.parent / "figures") / f"{page.stem}.png"
    _draw(figure, rows, dense, texts[0])
    contents = Page(
        title,
        [
            Text((_PREFACE,)),
            Text(tuple(_setting_lines(dense))),
            Figure(figure, "Perplexity against bytes of the compressed layers"),
            *_summary(rows, texts),
            Text((_PREDICTION,)),
            Table(_columns(texts, rows), rows),
            Heading("Provenance"),
            Text(origin([record["provenance"] for record in (dense, *records.values())])),
        ],
    )
    write_bytes(page, contents.markdown(page.parent).encode())
    write_bytes(page.with_suffix(".html"), contents.html().encode())
    return [page, page.with_suffix(".html"), figure]


def _summary(rows: list[dict[str, Any]], texts: list[str]) -> list[Text]:
    first, *others = texts
    reads = {row["method"]: method_named(row["method"].removesuffix(_REFINED)).needs != "nothing" for row in rows}
    paragraphs = [
        summary(rows, f"perplexity {first}", "perplexity"),
        *(other_text(rows, f"ratio {first}", f"ratio {other}", (first, other), reads) for other in others),
    ]
    return [Text((" ".join(sentences),)) for sentences in paragraphs if sentences]


def _columns(texts: list[str], rows: list[dict[str, Any]]) -> list[Column]:
    small = max((row["megabytes"] for row in rows), default=0.0) < 10
    columns = [
        Column("method", "method"),
        Column("limit", "limit, bits", "g"),
        Column("bits", "bits per weight", ".2f"),
        Column("megabytes", "MB", ".3f" if small else ".1f"),
    ]
    for text in texts:
        columns += [Column(f"perplexity {text}", text, "#.4g"), Column(f"ratio {text}", "to dense", "#.3g")]
    return [
        *columns,
        Column("predicted", "predicted", "#.2g"),
        Column("measured", "measured", "#.2g"),
        Column("macs", "multiply-adds", ".2f"),
        Column("seconds", "seconds", ".0f"),
    ]


def _setting_lines(dense: _Record) -> list[str]:
    setting = dense["setting"]
    calibration = setting["calibration"]
    lines = [
        f"model: {setting['model']}, {dense['parameters']:,} parameters, type {setting['dtype']}",
        f"calibration: {calibration['text']}, {counted_windows(calibration)}",
    ]
    sources = [setting["evaluation"]["text"], *setting["others"]]
    for source, (name, perplexity) in zip(sources, dense["perplexity"].items(), strict=True):
        lines.append(
            f"evaluation: {source}, {perplexity['tokens']:,} tokens in {perplexity['windows']} windows of "
            f"{perplexity['window']}; perplexity of the dense model on {name} {perplexity['perplexity']:.2f}"
        )
    return lines


def _rows(records: Mapping[str, _Record], dense: _Record, texts: list[str]) -> list[dict[str, Any]]:
    """One row per method and size, the largest sizes first, then the best."""
    rows = []
    for record in records.values():
        layers, first = record["layers"], texts[0]
        row = {
            "method": record["setting"]["method"] + _REFINED * bool(record["setting"].get("refined")),
            "limit": record["setting"]["bits"],
            "bits": layers["bits"],
            "megabytes": layers["bytes"] / 1e6,
            "predicted": record["predicted"],
            "measured": record["perplexity"][first]["loss"] - dense["perplexity"][first]["loss"],
            "macs": layers["macs"],
            "seconds": record["seconds"],
        }
        for text in texts:
            perplexity = record["perplexity"][text]["perplexity"]
            row[f"perplexity {text}"] = perplexity
            row[f"ratio {text}"] = perplexity / dense["perplexity"][text]["perplexity"]
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["limit"], row[f"perplexity {texts[0]}"]))


def _draw(file: Path, rows: list[dict[str, Any]], dense: _Record, text: str) -> None:
    """Draw perplexity against bytes, one line per method."""
    best = dense["perplexity"][text]["perplexity"]
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted(
            {
                (row["megabytes"], row[f"perplexity {text}"])
                for row in rows
                if row["method"] == method
                and math.isfinite(row[f"perplexity {text}"])
                and row[f"perplexity {text}"] <= _WORST * best
            }
        )
        if points:
            series.append(Series(method, [x for x, _ in points], [y for _, y in points]))
    draw(
        file,
        series,
        title=f"Perplexity on {text} against size",
        x="compressed layers, MB",
        y="perplexity",
        axes={"yscale": "log", "xscale": "log"},
        level=best,
        note=f"horizontal line: dense model; models above {_WORST} times its perplexity are only in the table",
    )
