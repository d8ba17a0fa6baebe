"""Results page of the study in Markdown and HTML, with figures, generated from the records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpochain.errors import CheckpointError, OutputError
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Text
from mpochain.system.files import require_writable, write_bytes
from studies.picogpt.corpus import TINY_SHAKESPEARE
from studies.picogpt.study.beyond import beyond
from studies.picogpt.study.claims import claims
from studies.picogpt.study.conclusion import conclusion
from studies.picogpt.study.records import read_record
from studies.picogpt.study.rows import rows_of
from studies.picogpt.study.sections.errors import errors
from studies.picogpt.study.sections.quality import accuracy_figure, quality
from studies.picogpt.study.sections.rates import rates
from studies.picogpt.study.sections.times import times
from studies.picogpt.study.sections.training import training

__all__ = ["write_page"]

_ORDER = ("best", "paper", "quick")
_PARTS = ("timing", "reconstruction")

_TITLES = {
    "best": "This library's settings",
    "paper": "The paper's settings",
    "quick": "A quick run, which shows that everything works and says nothing about quality",
}

_PREFACE = (
    "Generated from the records by `python -m studies.picogpt study --page-only`; not edited by hand. A small "
    "character transformer is trained with dense weights and with chains in their place; published results are those "
    "of arXiv 2603.28534."
)

_GLOSSARY = (
    "χ=16: every linear layer is a chain on the paper's sites with bonds of at most 16; TT-SVD: decomposed from the "
    "trained dense weights instead of randomly initialised; calibrated: fitted to the dense weights so that the "
    "outputs of the linear layers change least on the training split; distilled: also trained on the predictions of "
    "that dense model.",
    "low rank, skewed, dense of a smaller width, each as χ=16: another shape with the same number of parameters, in "
    "every layer for chains, in total for the dense model. Skewed chains have two sites, one of them small.",
    "smaller, block smaller: parameters of the dense model, or of one of its blocks, divided by those of the row; size "
    "of paper's χ: parameters of the row divided by those of the paper's chains.",
    "validation loss (nats per token), perplexity, and accuracy of the most likely token: on the whole validation "
    "split, means over seeds; ±: half the range over seeds, and their number; of dense: share of the accuracy of the "
    "dense run with the same seed, or of the dense run that provided the weights or the teacher.",
    "MACs per token: multiply-adds of all linear layers per token, in the plans with the least predicted time for the "
    "forward pass of a training batch; fewest MACs per token: the minimum for each chain of sweeping a token through "
    "it and of multiplying it by the rebuilt matrix.",
)


def write_page(out: Path, page: Path) -> list[Path]:
    """Write the page as Markdown and HTML in one folder, and the figures in its subfolder ``figures``.

    Args:
        out: folder of the study, with a folder for each preset.
        page: the Markdown file.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: there are no records, or one is damaged.
        OutputError: the page is not named ``.md``, or its folder is not writable.
        MissingDependencyError: matplotlib is missing.
    """
    if page.suffix != ".md":
        raise OutputError(f"the page must be a Markdown file; name it {page.with_suffix('.md').name}")
    presets = {name: records for name in _ORDER if (records := _runs(out / name))}
    if not presets:
        raise CheckpointError(f"{out} contains no finished run of a study; run one first")
    figures = require_writable(page.parent / "figures")
    tables = {
        name: rows_of([record for record in records if not record["setting"].ablation])
        for name, records in presets.items()
    }
    study = Page(
        "The PicoGPT study",
        [
            Text((_PREFACE,)),
            *_head(tables, figures),
            Heading("Words"),
            Text(_GLOSSARY),
            Heading("The paper's claims"),
            Text(tuple(claims({name: rows for name, rows in tables.items() if _is_papers(presets[name])}, out))),
        ],
    )
    for name, records in presets.items():
        rows = tables[name]
        study.blocks += [
            Heading(_TITLES[name]),
            Text((*training(records), _corpora(records), *origin([record["provenance"] for record in records]))),
            *quality(name, rows, records, figures),
        ]
        if name != "quick" and (lines := beyond(rows)):
            study.blocks += [Heading("Other shapes, other starts", 3), Text(tuple(lines))]
        study.blocks += [
            *rates(records),
            *times(name, rows, out / name, figures),
            *errors(name, out / name, figures),
        ]
    write_bytes(page, study.markdown(page.parent).encode())
    write_bytes(page.with_suffix(".html"), study.html().encode())
    return [page, page.with_suffix(".html"), *(block.path for block in study.blocks if isinstance(block, Figure))]


def _head(tables: dict[str, list[dict[str, Any]]], figures: Path) -> list[Block]:
    """The conclusion and the figure that shows it; empty without runs that compare designs."""
    for name, rows in tables.items():
        if name != "quick" and (lines := conclusion(rows)):
            return [Heading("Conclusion"), Text(tuple(lines)), *accuracy_figure(name, rows, figures)]
    return []


def _runs(folder: Path) -> list[dict[str, Any]]:
    return [read_record(file) for file in sorted(folder.glob("*.json")) if file.stem not in _PARTS]


def _is_papers(records: list[dict[str, Any]]) -> bool:
    return all(record["corpus"]["sha256"] == TINY_SHAKESPEARE.sha256 for record in records)


def _corpora(records: list[dict[str, Any]]) -> str:
    return f"corpus: {', '.join(sorted({record['corpus']['name'] for record in records}))}"
