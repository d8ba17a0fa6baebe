"""Results page of a comparison in Markdown and HTML, with figures, generated from the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError, OutputError
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import require_writable, write_bytes
from mpochain.workflows.comparing import FINETUNED
from mpochain.workflows.comparison_records import read_runs
from mpochain.workflows.texts import counted_windows

__all__ = ["write_comparison"]

_QUALITY = (
    Column("method", "method"),
    Column("budget", "budget"),
    Column("share", "share of the layers", ".1%"),
    Column("bytes", "bytes of the layers", ","),
    Column("perplexity", "perplexity", "#.4g"),
    Column("to_dense", "to dense", "#.3g"),
    Column("to_baseline", "to SVD-LLM", "#.3g"),
    Column("finetuned", "finetuned", "#.4g"),
    Column("finetuned_to_dense", "to dense", "#.3g"),
    Column("finetuned_to_baseline", "to SVD-LLM finetuned", "#.3g"),
)
_COSTS = (
    Column("method", "method"),
    Column("budget", "budget"),
    Column("macs", "multiply-adds, to dense", ".2f"),
    Column("prefill", "prefill, to dense", ".2f"),
    Column("decode", "one token, to dense", ".2f"),
    Column("minutes", "minutes", ".1f"),
    Column("peak", "peak GiB", ".2f"),
    Column("finetuning_tokens", "finetuning tokens", ","),
    Column("finetuning_minutes", "finetuning minutes", ".1f"),
)
# Published method that the others are compared with.
_BASELINE = "svd_llm"
# Models above this multiple of the dense perplexity are not drawn: they produce no language, and would compress the
# rest of the figure.
_WORST = 20

_PREFACE = (
    "Generated from the records by `mpochain compare --page-only`; not edited by hand. At one budget, every method has "
    "the same limit on parameters, indices included. All methods are calibrated on one text and evaluated on another, "
    "which is used for neither calibration nor finetuning. The columns *to dense* and *to SVD-LLM* are ratios."
)
_COSTS_NOTE = (
    "Times are medians for the whole model in fast execution, measured in turn with the dense model. Minutes and peak "
    "memory are those of compression including calibration; the peak includes libraries and the dense model."
)
_FINETUNING_NOTE = (
    "every model was finetuned on the same tokens in the same order. A finetuned model, unlike the dense one, has seen "
    "text of this kind, and may have a lower perplexity than the dense one for that reason alone"
)

_Record = Mapping[str, Any]


def write_comparison(out: Path, page: Path) -> list[Path]:
    """Write the page as Markdown and HTML in one folder, and the figure in its subfolder ``figures``.

    Args:
        out: folder of the runs.
        page: the Markdown file.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: the dense model has no record, or a record is damaged.
        OutputError: the page is not named ``.md``, or its folder is not writable.
        MissingDependencyError: matplotlib is missing.
    """
    if page.suffix != ".md":
        raise OutputError(f"the page must be a Markdown file; name it {page.with_suffix('.md').name}")
    records = read_runs(out)
    if "dense" not in records:
        raise CheckpointError(f"{out} contains no finished run of the dense model; run the comparison first")
    rows = _rows(records)
    figure = require_writable(page.parent / "figures") / "comparison-perplexity.png"
    _draw(figure, rows, records["dense"])
    contents = Page(
        "Compressing a language model",
        [
            Text((_PREFACE,)),
            Text(tuple(_setting_lines(records))),
            Heading("Perplexity"),
            Table((*_QUALITY, *_further_columns(records)), [_dense_row(records), *rows]),
            Figure(figure, "Perplexity against the share of the layers' parameters"),
            Heading("Costs"),
            Text((_COSTS_NOTE,)),
            Table(_COSTS, rows),
            *_texts(records, rows),
            Heading("Provenance"),
            Text(origin([record["provenance"] for record in records.values()])),
        ],
    )
    write_bytes(page, contents.markdown(page.parent).encode())
    write_bytes(page.with_suffix(".html"), contents.html().encode())
    return [page, page.with_suffix(".html"), figure]


def _further_columns(records: Mapping[str, _Record]) -> list[Column]:
    """A column for the perplexity on each further text."""
    return [Column(f"on {name}", f"perplexity on {name}", "#.4g") for name in records["dense"].get("also", {})]


def _further(record: _Record) -> dict[str, Any]:
    return {f"on {name}": perplexity["perplexity"] for name, perplexity in record.get("also", {}).items()}


def _texts(records: Mapping[str, _Record], rows: list[dict[str, Any]]) -> list[Block]:
    """What each model generates from each prompt, in the order of the table; nothing without prompts."""
    names = ["dense"]
    for row in rows:
        name = f"{row['method']}-{row['budget']}"
        names += [name, f"{name}{FINETUNED}"]
    told = [name for name in names if records.get(name, {}).get("texts")]
    if not told:
        return []
    blocks: list[Block] = [Heading("Generated text"), Text(("Greedy decoding, at most 48 tokens.",))]
    for number, prompt in enumerate(records[told[0]]["setting"]["prompts"]):
        blocks += [Heading(prompt, 3), Text(tuple(f"{name}: {records[name]['texts'][number]}" for name in told))]
    return blocks


def _setting_lines(records: Mapping[str, _Record]) -> list[str]:
    """Lines that describe the model, the texts and the training of a comparison."""
    dense = records["dense"]
    setting = next((record["setting"] for name, record in records.items() if name != "dense"), dense["setting"])
    perplexity = dense["perplexity"]
    lines = [
        f"model: {setting['model']}, {dense['parameters']:,} parameters, dense perplexity "
        f"{perplexity['perplexity']:.2f}",
        f"evaluation: {setting['evaluation']['text']}, {perplexity['tokens']:,} tokens in {perplexity['windows']} "
        f"windows of {perplexity['window']}, stride {perplexity['stride']}",
    ]
    calibration = setting["calibration"]
    if calibration is not None:
        lines.append(f"calibration: {calibration['text']}, {counted_windows(calibration)}")
    finetune = next(
        (record["setting"]["finetune"] for name, record in records.items() if name.endswith(FINETUNED)), None
    )
    if finetune is not None:
        training = finetune["training"]
        lines.append(
            f"finetuning: {finetune['text']}, {training['steps']} steps of {training['batch_size']} windows of "
            f"{finetune['window']}, learning rate {training['learning_rate']}, weight of the teacher in the loss "
            f"{1.0 if training['distillation'] is None else training['distillation']}, temperature "
            f"{training['temperature']}; {_FINETUNING_NOTE}"
        )
    return lines


def _dense_row(records: Mapping[str, _Record]) -> dict[str, Any]:
    """Row of the dense model in the table of perplexities."""
    perplexity = records["dense"]["perplexity"]["perplexity"]
    size = next((record["layers"]["bytes_before"] for record in records.values() if "layers" in record), 0)
    values = {"method": "dense", "budget": "1", "share": 1.0, "bytes": size, "perplexity": perplexity, "to_dense": 1.0}
    return dict.fromkeys((column.key for column in _QUALITY), None) | values | _further(records["dense"])


def _rows(records: Mapping[str, _Record]) -> list[dict[str, Any]]:
    """One row per method and budget with results before and after finetuning; largest models first, then the best."""
    dense = _perplexity(records, "dense")
    rows = []
    for name, record in records.items():
        if name == "dense" or name.endswith(FINETUNED):
            continue
        method, _, budget = name.rpartition("-")
        baseline = f"{_BASELINE}-{budget}"
        layers, speed, finetuned = record["layers"], record["speed"], records.get(f"{name}{FINETUNED}")
        perplexity, after = _perplexity(records, name), _perplexity(records, f"{name}{FINETUNED}")
        rows.append(
            {
                "method": method,
                "budget": budget,
                "share": layers["parameters_after"] / layers["parameters_before"],
                "bytes": layers["bytes_after"],
                "perplexity": perplexity,
                "to_dense": _ratio(perplexity, dense),
                "to_baseline": _ratio(perplexity, _perplexity(records, baseline)),
                "finetuned": after,
                "finetuned_to_dense": _ratio(after, dense),
                "finetuned_to_baseline": _ratio(after, _perplexity(records, f"{baseline}{FINETUNED}")),
                "macs": layers["macs_after"] / layers["macs_before"],
                "prefill": speed and speed["compressed"]["prefill"] / speed["dense"]["prefill"],
                "decode": speed and speed["compressed"]["decode"] / speed["dense"]["decode"],
                "minutes": record["seconds"] / 60,
                "peak": record["peak_bytes"] / 2**30 if record["peak_bytes"] else None,
                "finetuning_tokens": finetuned["training"]["tokens"] if finetuned is not None else None,
                "finetuning_minutes": finetuned["seconds"] / 60 if finetuned is not None else None,
                **_further(record),
            }
        )
    return sorted(rows, key=lambda row: (-row["share"] // 0.02, row["perplexity"]))


def _perplexity(records: Mapping[str, _Record], name: str) -> float | None:
    return records[name]["perplexity"]["perplexity"] if name in records else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference is not None else None


def _draw(file: Path, rows: list[dict[str, Any]], dense: _Record) -> None:
    """Draw perplexity against size, one line per method, without and with finetuning."""
    perplexity = dense["perplexity"]["perplexity"]
    series = [Series("dense", [1.0], [perplexity], line=False)]
    for method in dict.fromkeys(row["method"] for row in rows):
        for key, label in (("perplexity", method), ("finetuned", f"{method}, finetuned")):
            points = sorted(
                (row["share"], row[key])
                for row in rows
                if row["method"] == method and row[key] and row[key] <= _WORST * perplexity
            )
            if points:
                series.append(Series(label, [x for x, _ in points], [y for _, y in points]))
    draw(
        file,
        series,
        title="Perplexity against size",
        x="share of the layers' parameters",
        y="perplexity",
        axes={"yscale": "log"},
        note=f"models above {_WORST} times the dense perplexity are only in the table",
    )
