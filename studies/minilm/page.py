"""Page of the frontier of MiniLM: ``python -m studies.minilm.page``.

Writes docs/results/frontier-minilm.md and its figure from the records beside this file alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import require_writable, write_bytes
from mpochain.workflows.frontier_records import DENSE, read_frontier
from mpochain.workflows.frontier_summary import summary

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "frontier-minilm.md"

_FEATURES = 384  # of an embedding

_COLUMNS = (
    Column("method", "method"),
    Column("limit", "limit, bits", "g"),
    Column("bits", "bits per weight", ".2f"),
    Column("megabytes", "MB", ".2f"),
    Column("cosine", "cosine", ".4f"),
    Column("distance", "1 - cosine", "#.2g"),
    Column("predicted", "predicted", "#.2g"),
    Column("spearman", "Spearman", ".4f"),
    Column("neighbours", "same neighbours", ".1%"),
    Column("macs", "multiply-adds", ".2f"),
    Column("seconds", "seconds", ".0f"),
)


def write_page(records: Path, page: Path) -> None:
    """Write the page of the records in a folder, and its figure in the subfolder ``figures``."""
    points = read_frontier(records, "embeddings")
    dense = points.pop(DENSE)
    setting, tokens = dense["setting"], dense["embeddings"]["tokens"]
    rows = _rows(points, setting["calibration"]["sentences"], tokens["calibration"])
    compressed = next(iter(points.values()))["layers"]["weights"]
    figure = require_writable(page.parent / "figures") / f"{page.stem}.png"
    _draw(figure, rows)
    words = " ".join(
        [
            *summary(rows, "distance", "mean of 1 - cosine", "#.2g"),
            *(f"By ranks: {sentence}" for sentence in summary(rows, "disorder", "1 - Spearman", "#.2g")[:1]),
        ]
    )
    blocks: list[Block] = [
        Text(
            (
                "Generated from records by `python -m studies.minilm.page`; not edited by hand. An encoder of "
                "sentences, compressed to many sizes: mean *cosine* of each sentence's embedding with the dense one; "
                "*Spearman*'s rank correlation of the similarities of all pairs of sentences; and the share of each "
                "sentence's 10 nearest neighbours that stay the *same*. Sizes are those of the compressed layers as "
                "stored. Factors of SVD-LLM are counted in 16 bits.",
            )
        ),
        Text(
            (
                f"model: {setting['model']}, {dense['parameters']:,} parameters in {setting['dtype']}, of which the "
                f"linear layers, {compressed:,}, are compressed; the rest, mostly the table of words, stays as it is",
                *(
                    f"{use}: {setting[use]['text']}, {setting[use]['sentences']:,} sentences, {tokens[use]:,} tokens"
                    for use in ("calibration", "evaluation")
                ),
                "sentences of 8 to 40 words without unknown words, spread evenly over the text, in padded batches with "
                "their masks",
            )
        ),
        Figure(figure, "Distance of the embeddings from the dense model's against bytes of the compressed layers"),
        *([Text((words,))] if words else []),
        Text(
            (
                "*Predicted* is 1 - cosine as the calibration predicts it: the increase in nats per sentence of a "
                f"normal distribution around the embedding whose variance is 1/{_FEATURES}, divided by {_FEATURES}.",
            )
        ),
        Table(_COLUMNS, rows),
        Heading("Provenance"),
        Text(origin([record["provenance"] for record in (dense, *points.values())])),
    ]
    write_bytes(page, Page("Sentence embeddings of MiniLM against size", blocks).markdown(page.parent).encode())


def _rows(points: dict[str, dict[str, Any]], sentences: int, tokens: int) -> list[dict[str, Any]]:
    """One row per method and size, the largest sizes first, then the best."""
    rows = []
    for record in points.values():
        quality, predicted = record["embeddings"], record["predicted"]
        rows.append(
            {
                "method": record["setting"]["method"],
                "limit": record["setting"]["bits"],
                "bits": record["layers"]["bits"],
                "megabytes": record["layers"]["bytes"] / 1e6,
                **{name: quality[name] for name in ("cosine", "spearman", "neighbours")},
                "distance": 1 - quality["cosine"],
                "disorder": 1 - quality["spearman"],
                "predicted": None if predicted is None else predicted * tokens / sentences / _FEATURES,
                "macs": record["layers"]["macs"],
                "seconds": record["seconds"],
            }
        )
    return sorted(rows, key=lambda row: (-row["limit"], row["distance"]))


def _draw(file: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the distance against bytes, one line per method."""
    series = []
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted({(row["megabytes"], row["distance"]) for row in rows if row["method"] == method})
        series.append(Series(method, [x for x, _ in points], [y for _, y in points]))
    draw(
        file,
        series,
        title="Embeddings of MiniLM: distance from the dense model's against size, less is better",
        x="compressed layers, MB",
        y="mean of 1 - cosine",
        axes={"yscale": "log", "xscale": "log"},
        note="sentences of WikiText-2's test text",
    )


if __name__ == "__main__":
    write_page(HERE / "frontier", PAGE)
    print(PAGE)
