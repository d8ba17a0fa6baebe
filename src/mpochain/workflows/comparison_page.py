"""A comparison as a Markdown page with figures and an HTML twin, from the records of its runs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError, OutputError
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Figure, Heading, Page, Table, Text
from mpochain.system.files import require_writable, write_bytes
from mpochain.workflows.comparing import read_cell

__all__ = ["write_comparison"]

_QUALITY = (
    Column("method", "method"),
    Column("budget", "budget"),
    Column("left", "of the layers", ".1%"),
    Column("bytes", "bytes of the layers", ","),
    Column("perplexity", "perplexity", "#.4g"),
    Column("of_dense", "of dense", "#.3g"),
    Column("against", "of SVD-LLM", "#.3g"),
    Column("healed", "healed", "#.4g"),
    Column("healed_of_dense", "of dense", "#.3g"),
    Column("healed_against", "of SVD-LLM healed", "#.3g"),
)
_COSTS = (
    Column("method", "method"),
    Column("budget", "budget"),
    Column("macs", "multiply-adds, of dense", ".2f"),
    Column("prefill", "prefill, of dense", ".2f"),
    Column("decode", "one token, of dense", ".2f"),
    Column("minutes", "minutes", ".1f"),
    Column("peak", "peak GiB", ".2f"),
    Column("healing_tokens", "healing tokens", ","),
    Column("healing_minutes", "healing minutes", ".1f"),
)
_PUBLISHED = "svd_llm"
# Times the dense perplexity: models beyond do not speak, and would leave no room for the others in a figure.
_WORST = 20

_PREFACE = (
    "Made from records by a command (`mpochain compare --page-only`), not edited by hand. Every method has at most the "
    "same parameters, counted with all that it must keep; it sees the same calibration text, and is evaluated on the "
    "same text, which is never calibrated or healed on."
)


def write_comparison(out: Path, page: Path) -> list[Path]:
    """Write the page, its HTML twin beside it, and figures in a folder beside both.

    Args:
        out: folder of the runs.
        page: the Markdown file.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: no record of the dense model, or a damaged record.
        OutputError: the page is not named ``.md``, or its folder cannot be written.
        MissingDependencyError: matplotlib is missing.
    """
    if page.suffix != ".md":
        raise OutputError(f"the page is Markdown, with an HTML file beside it: name it {page.with_suffix('.md').name}")
    records = {file.stem: read_cell(file) for file in sorted(out.glob("*.json"))}
    if "dense" not in records:
        raise CheckpointError(f"{out} holds no finished run of the dense model; run the comparison first")
    dense = records["dense"]
    rows = _rows(records)
    figure = require_writable(page.parent / "figures") / "comparison-perplexity.png"
    _draw(figure, rows, dense)
    setting = next((each["setting"] for name, each in records.items() if name != "dense"), dense["setting"])
    healed = next((each["setting"] for name, each in records.items() if name.endswith("-healed")), None)
    found = dense["perplexity"]
    lines = [
        f"model: {setting['model']}, {dense['parameters']:,} parameters, dense perplexity {found['perplexity']:.2f}",
        f"evaluation: {setting['evaluation']['text']}, {found['tokens']:,} tokens in {found['windows']} windows of "
        f"{found['window']}, stride {found['stride']}",
    ]
    if setting["calibration"] is not None:
        seen = setting["calibration"]
        lines.append(f"calibration: {seen['text']}, {seen['windows']} windows of {seen['window']}")
    if healed is not None:
        training = healed["healing"]["training"]
        lines.append(
            f"healing: {healed['healing']['text']}, {training['steps']} steps of {training['batch_size']} windows of "
            f"{healed['healing']['window']}, learning rate {training['learning_rate']}, share of the teacher "
            f"{1.0 if training['distillation'] is None else training['distillation']}, temperature "
            f"{training['temperature']}; every healed model saw the same tokens in the same order. A healed model has "
            "read text of this kind, which the dense one has not, and may fall below it for that alone"
        )
    made = Page(
        "Compressing a language model",
        [
            Text((_PREFACE,)),
            Text(tuple(lines)),
            Heading("Perplexity"),
            Table(_QUALITY, [_dense_row(records), *rows]),
            Figure(figure, "Perplexity against what is left of the layers"),
            Heading("What it costs"),
            Text(
                (
                    "Times of the whole model in fast execution: medians, with the dense model in turn. Minutes and "
                    "peak memory are those of compression with its calibration, libraries and the dense model with it.",
                )
            ),
            Table(_COSTS, rows),
            Heading("Where it was made"),
            Text(origin([each["provenance"] for each in records.values()])),
        ],
    )
    write_bytes(page, made.markdown(page.parent).encode())
    write_bytes(page.with_suffix(".html"), made.html().encode())
    return [page, page.with_suffix(".html"), figure]


def _dense_row(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The dense model in the table of qualities."""
    dense = records["dense"]["perplexity"]["perplexity"]
    whole = next((each["layers"]["bytes_before"] for each in records.values() if "layers" in each), 0)
    nothing = dict.fromkeys(column.key for column in _QUALITY)
    known = {"method": "dense", "budget": "1", "left": 1.0, "bytes": whole, "perplexity": dense, "of_dense": 1.0}
    return nothing | known


def _rows(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each method and budget, healed beside not healed; the smallest models last, the best methods first."""
    dense = records["dense"]["perplexity"]["perplexity"]
    rows = []
    for name, record in records.items():
        if name == "dense" or name.endswith("-healed"):
            continue
        method, _, budget = name.rpartition("-")
        layers, speed = record["layers"], record["speed"]
        healed = records.get(f"{name}-healed")

        def against(suffix: str, value: float | None, budget: str = budget) -> float | None:
            published = records.get(f"{_PUBLISHED}-{budget}{suffix}")
            return value / published["perplexity"]["perplexity"] if published is not None and value else None

        perplexity = record["perplexity"]["perplexity"]
        after = healed["perplexity"]["perplexity"] if healed is not None else None
        rows.append(
            {
                "method": method,
                "budget": budget,
                "left": layers["parameters_after"] / layers["parameters_before"],
                "bytes": layers["bytes_after"],
                "perplexity": perplexity,
                "against": against("", perplexity),
                "of_dense": perplexity / dense,
                "healed": after,
                "healed_against": against("-healed", after),
                "healed_of_dense": after / dense if after is not None else None,
                "macs": layers["macs_after"] / layers["macs_before"],
                "prefill": _ratio(speed, "prefill"),
                "decode": _ratio(speed, "decode"),
                "minutes": record["seconds"] / 60,
                "peak": record["peak_bytes"] / 2**30 if record["peak_bytes"] else None,
                "healing_tokens": healed["training"]["tokens"] if healed is not None else None,
                "healing_minutes": healed["seconds"] / 60 if healed is not None else None,
            }
        )
    return sorted(rows, key=lambda row: (-row["left"] // 0.02, row["perplexity"]))


def _ratio(speed: dict[str, Any] | None, what: str) -> float | None:
    return speed["compressed"][what] / speed["dense"][what] if speed is not None else None


def _draw(file: Path, rows: list[dict[str, Any]], dense: dict[str, Any]) -> None:
    whole = dense["perplexity"]["perplexity"]
    worst = _WORST * whole
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for key, label in (("perplexity", method), ("healed", f"{method}, healed")):
            points = sorted(
                (row["left"], row[key]) for row in rows if row["method"] == method and row[key] and row[key] <= worst
            )
            if points:
                series.append(Series(label, [x for x, _ in points], [y for _, y in points]))
    draw(
        file,
        [Series("dense", [1.0], [whole], line=False), *series],
        title="Perplexity against size",
        x="share of the layers' parameters",
        y="perplexity",
        axes={"yscale": "log"},
        note=f"beyond {_WORST} times the dense perplexity nothing is drawn; the table has it",
    )
