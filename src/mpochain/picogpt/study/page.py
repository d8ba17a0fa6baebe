"""``study.md``, one HTML file and the figures, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mpochain.atomic import require_writable, write_bytes
from mpochain.errors import CheckpointError, OutputError
from mpochain.picogpt.design import Design
from mpochain.picogpt.model import PicoGPT
from mpochain.picogpt.study.claims import PUBLISHED, beyond, claims
from mpochain.picogpt.study.records import read_part, read_record
from mpochain.picogpt.study.rows import rows_of
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.page import Figure, Heading, Page, Table, Text

__all__ = ["write_page"]

_ORDER = ("best", "paper", "quick")
_PARTS = ("timing", "reconstruction")

_TITLES = {
    "best": "This library's settings",
    "paper": "The paper's settings",
    "quick": "A quick run: shows that all of it works, and nothing about quality",
}

_QUALITY = (
    Column("row", "model"),
    Column("parameters", "parameters", ","),
    Column("published_parameters", "published", ","),
    Column("compression", "smaller", ".2f"),
    Column("block_compression", "block smaller", ".2f"),
    Column("loss", "validation loss", ".3f"),
    Column("perplexity", "perplexity", ".3f"),
    Column("accuracy", "accuracy", ".2%"),
    Column("spread", "± (seeds)"),
    Column("published_accuracy", "published", ".1%"),
    Column("kept", "of dense", ".1%"),
    Column("share", "size of paper's χ", ".2f"),
    Column("per_root", "accuracy/√N", ".2e"),
    Column("macs_per_token", "MACs/token", ","),
    Column("step_peak", "MiB step", ",.0f"),
)

_TIMES = (
    Column("design", "linears"),
    Column("compact_one", "ms one, compact", ".1f"),
    Column("fast_one", "ms one, fast", ".1f"),
    Column("compact_many", "ms many, compact", ".0f"),
    Column("fast_many", "ms many, fast", ".0f"),
    Column("step", "ms step", ".0f"),
    Column("step_bfloat16", "ms step, bfloat16", ".0f"),
    Column("tokens", "training tokens/s", ",.0f"),
)

_CHOICES = (
    Column("design", "linears"),
    Column("rate", "learning rate"),
    Column("cores", "cores"),
    Column("loss", "validation loss", ".3f"),
    Column("accuracy", "accuracy", ".2%"),
)

_ERRORS = (
    Column("group", "layers"),
    Column("sites", "sites"),
    Column("bond", "χ"),
    Column("parameters", "parameters", ","),
    Column("error", "chain", ".3f"),
    Column("low_rank", "low rank, as many parameters", ".3f"),
    Column("random", "chain of noise", ".3f"),
)


def write_page(out: Path, page: Path) -> list[Path]:
    """Write the page, its HTML twin beside it, and figures in a folder beside both.

    Args:
        out: folder of the study, with a folder for each preset.
        page: the Markdown file.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: no records, or a damaged one.
        OutputError: the page is not named ``.md``, or its folder cannot be written.
        MissingDependencyError: matplotlib is missing.
    """
    if page.suffix != ".md":
        raise OutputError(f"the page is Markdown, with an HTML file beside it: name it {page.with_suffix('.md').name}")
    presets = {name: records for name in _ORDER if (records := _runs(out / name))}
    if not presets:
        raise CheckpointError(f"{out} holds no finished run of a study; run one first")
    figures = require_writable(page.parent / "figures")
    made = Page("The PicoGPT study")
    made.blocks.append(
        Text(
            (
                "Made from records by a command (`mpochain study --page-only`), not edited by hand. Quality is that of "
                "the whole validation split: loss in nats per token, accuracy of the most likely token, half its range "
                "over seeds. MACs are multiply-adds of all linears per token, by the plans of a training batch; MiB is "
                "what a training step takes at most beyond what was alive before it. Published figures are those of "
                "arXiv 2603.28534.",
            )
        )
    )
    files: list[Path] = []
    tables = {
        name: rows_of([each for each in runs if not each["setting"]["ablation"]]) for name, runs in presets.items()
    }
    made.blocks += [Heading("The paper's claims"), Text(tuple(claims(tables, out)))]
    for name, records in presets.items():
        rows = tables[name]
        made.blocks += [
            Heading(_TITLES[name]),
            Text((_corpora(records), *_origin([each["provenance"] for each in records]))),
            Table(_QUALITY, rows),
        ]
        if name != "quick" and (lines := beyond(rows)):
            made.blocks += [Heading("Other shapes, other starts", 3), Text(tuple(lines))]
        made.blocks += _choices(records)
        files += _figures(figures, name, rows, records)
        captions = {"accuracy": "Validation accuracy against parameters", "losses": "Training loss"}
        made.blocks += [Figure(figures / f"study-{name}-{key}.png", caption) for key, caption in captions.items()]
        made.blocks += _timing(out / name, figures, name, rows, files)
        made.blocks += _reconstruction(out / name, figures, name, files)
    write_bytes(page, made.markdown(page.parent).encode())
    write_bytes(page.with_suffix(".html"), made.html().encode())
    return [page, page.with_suffix(".html"), *files]


def _runs(folder: Path) -> list[dict[str, Any]]:
    return [read_record(file) for file in sorted(folder.glob("*.json")) if file.stem not in _PARTS]


def _origin(provenances: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    lines = []
    for key in ("commit", "processor", "cpus", "threads", "python", "torch"):
        values = sorted({str(each.get(key)) for each in provenances})
        lines.append(f"{key}: {', '.join(_short(value) if key == 'commit' else value for value in values)}")
    return tuple(lines)


def _short(commit: str) -> str:
    head, plus, changes = commit.partition("+")
    return head[:12] + plus + changes


def _corpora(records: list[dict[str, Any]]) -> str:
    return f"corpus: {', '.join(sorted({record['corpus']['name'] for record in records}))}"


def _series(
    rows: Iterable[dict[str, Any]], x: str, keep: Callable[[dict[str, Any]], bool], label: str
) -> Series | None:
    points = sorted((row[x], row["accuracy"]) for row in rows if keep(row) and row[x] is not None)
    return Series(label, [a for a, _ in points], [b for _, b in points]) if points else None


_KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "dense, narrow ones too": lambda row: row["design"].family == "dense",
    "chains, random start": lambda row: row["design"].family == "paper" and row["start"] == "random",
    "chains, TT-SVD": lambda row: row["row"].endswith("TT-SVD"),
    "chains, TT-SVD and tuning": lambda row: "TT-SVD and" in row["row"],
    "low rank": lambda row: row["design"].family == "low rank",
    "skewed chains": lambda row: row["design"].family == "skewed",
}


def _figures(folder: Path, name: str, rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> list[Path]:
    accuracy, losses = (folder / f"study-{name}-{key}.png" for key in ("accuracy", "losses"))
    series = [_series(rows, "parameters", keep, label) for label, keep in _KINDS.items()]
    draw(
        accuracy,
        [one for one in series if one is not None],
        title="Validation accuracy against size",
        x="parameters",
        y="token accuracy",
        axes={"xscale": "log"},
    )
    first = {record["setting"]["row"]: record for record in reversed(records) if record["training"]}
    shown = [row["row"] for row in rows if row["row"] in first and row["row"] in PUBLISHED]
    draw(
        losses,
        [
            Series(row, [10 * (k + 1) for k in range(len(values))], values, markers=False)
            for row in shown
            if (values := first[row]["training"]["losses"])
        ],
        title="Training loss from a random start, means of ten steps",
        x="step",
        y="nats per token",
    )
    return [accuracy, losses]


def _choices(records: list[dict[str, Any]]) -> list[Heading | Text | Table | Figure]:
    """What the learning rates are worth: every ablation beside the run that it changes in one thing."""
    settings = [each["setting"] for each in records if each["setting"]["ablation"]]
    if not settings:
        return []
    rows = [
        {
            "design": str(Design(**each["setting"]["design"])),
            "rate": each["setting"]["config"]["learning_rate"],
            "cores": "by fan-in" if each["setting"]["core_rates"] else "as all",
            "loss": each["validation"]["loss"],
            "accuracy": each["validation"]["accuracy"],
        }
        for each in records
        if each["setting"]["start"] == "random"
        and any(all(each["setting"][key] == other[key] for key in ("design", "seed")) for other in settings)
    ]
    rows.sort(key=lambda row: (row["design"] != "dense", row["design"], row["cores"], row["rate"]))
    return [Heading("Learning rates", 3), Table(_CHOICES, rows)]


def _timing(
    folder: Path, figures: Path, name: str, rows: list[dict[str, Any]], files: list[Path]
) -> list[Heading | Text | Table | Figure]:
    if not (folder / "timing.json").exists():
        return []
    part, provenance = read_part(folder / "timing.json", "timing")
    records, many = part["designs"], part["sequences"]
    times = []
    for record in records:
        design = Design(**record["design"])
        milliseconds = {
            key: record[f"{key}_seconds"] * 1e3 if f"{key}_seconds" in record else None
            for key in ("compact_one", "fast_one", "compact_many", "fast_many", "step", "step_bfloat16")
        }
        tokens = many * PicoGPT.context / record["step_seconds"]
        times.append({"design": str(design), **milliseconds, "tokens": tokens})
    fastest = {
        Design(**record["design"]): min(
            record[f"{key}_seconds"] for key in ("compact_many", "fast_many") if f"{key}_seconds" in record
        )
        for record in records
    }
    for row in rows:
        seconds = fastest.get(row["design"])
        row["milliseconds"] = seconds * 1e3 if seconds else None
    file = figures / f"study-{name}-time.png"
    series = [_series(rows, "milliseconds", keep, label) for label, keep in _KINDS.items()]
    draw(
        file,
        [one for one in series if one is not None],
        title="Validation accuracy against time",
        x=f"ms for {many} sequences of 256 tokens, the better of compact and fast",
        y="token accuracy",
    )
    files.append(file)
    return [
        Heading("Times", 3),
        Text(
            (
                f"Medians of forward passes over 1 and {many} sequences of 256 tokens, and of a training step of "
                f"{many}; plans are measured, all designs in turn in one run.",
            )
        ),
        Text(_origin([provenance])),
        Table(_TIMES, times),
        Figure(file, "Validation accuracy against time"),
    ]


_GROUPS = {"q, k, v, o (128x128)": (128, 128), "W_1 (512x128)": (512, 128), "W_2 (128x512)": (128, 512)}


def _reconstruction(folder: Path, figures: Path, name: str, files: list[Path]) -> list[Heading | Text | Table | Figure]:
    if not (folder / "reconstruction.json").exists():
        return []
    records, provenance = read_part(folder / "reconstruction.json", "reconstruction")
    rows = []
    for label, shape in (*_GROUPS.items(), ("head", None)):
        group = [
            each
            for each in records
            if (tuple(each["shape"]) == shape if shape else tuple(each["shape"]) not in _GROUPS.values())
        ]
        for key in sorted({(each["sites"], each["bond"]) for each in group}):
            members = [each for each in group if (each["sites"], each["bond"]) == key]
            means = {what: statistics.fmean(each[what] for each in members) for what in ("error", "low_rank", "random")}
            rows.append(
                {"group": label, "sites": key[0], "bond": key[1], "parameters": members[0]["parameters"], **means}
            )
    file = figures / f"study-{name}-errors.png"
    two = [each for each in records if each["sites"] == 2]
    draw(
        file,
        [
            Series(f"χ={bond}", [each["layer"] for each in two if each["bond"] == bond], values)
            for bond in sorted({each["bond"] for each in two})
            if (values := [each["error"] for each in two if each["bond"] == bond])
        ],
        title="Relative error of each trained weight, two sites",
        x="layer",
        y="relative Frobenius error",
        axes={"ylim": (0, 1.02)},
    )
    files.append(file)
    return [
        Heading("Errors on trained weights", 3),
        Text(("Relative Frobenius errors of balanced chains of the trained dense weights, means over the layers.",)),
        Text(_origin([provenance])),
        Table(_ERRORS, rows),
        Figure(file, "Relative error of each trained weight in two sites"),
    ]
