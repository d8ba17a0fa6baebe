"""Tables of the benchmark pages, built from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from ratios import OWN, Record, best_peer, geometric_mean, median, over_autograd, over_best_peer, ratio
from targets import Target, memory_over

from mpochain.report import Column, markdown

_SHOWN_MISSES = 3


def _micro(record: Record, name: str) -> float | None:
    seconds = median(record, name)
    return seconds * 1e6 if seconds is not None else None


def shape(record: Record) -> str:
    """Shape and dtype of a cell, as text."""
    spec = record["spec"]
    return f"{spec['out_features']}x{spec['in_features']} {record['dtype']}"


def _within_shape(record: Record) -> str:
    return f"{record['kind']} χ={record['bond']} batch={record['batch']}"


def by_shape(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Group records by shape and dtype, in the order of the grid."""
    return [(name, list(cells)) for name, cells in groupby(sorted(records, key=_order), key=shape)]


def _order(record: Record) -> tuple[Any, ...]:
    spec = record["spec"]
    size = spec["out_features"] * spec["in_features"], spec["out_features"]
    return record["dtype"] != "float32", *size, record["kind"], record["bond"], record["batch"]


def forward_rows(cells: Iterable[Record]) -> list[Record]:
    """Table rows of forward passes, one per cell, times in microseconds."""
    rows = []
    for cell in cells:
        peer, plan, timing = best_peer(cell), cell["plans"]["compact"], cell["timings"]["compact"]
        rows.append(
            {
                "cell": _within_shape(cell),
                **{name: _micro(cell, name) for name in OWN},
                "spread": (timing["high"] - timing["low"]) / timing["median"],
                "peer": f"{peer} {_micro(cell, peer):,.0f}" if peer else None,
                "gain": ratio(cell, "dense"),
                "fast gain": ratio(cell, "dense", "fast"),
                "peer gain": over_best_peer(cell),
                "macs": plan["macs"] / plan["dense_macs"],
                "chosen": plan["chosen"],
            }
        )
    return rows


def forward(cells: Iterable[Record]) -> str:
    columns = (
        Column("cell", "cell"),
        Column("dense", "dense µs", ",.0f"),
        Column("low rank", "low rank µs", ",.0f"),
        Column("compact", "compact µs", ",.0f"),
        Column("spread", "spread", ".0%"),
        Column("predicted", "predicted plan µs", ",.0f"),
        Column("fast", "fast µs", ",.0f"),
        Column("peer", "best peer µs"),
        Column("gain", "dense/compact", ".2f"),
        Column("fast gain", "dense/fast", ".2f"),
        Column("peer gain", "peer/compact", ".2f"),
        Column("macs", "MACs/dense", ".2f"),
        Column("chosen", "plan"),
    )
    return markdown(columns, forward_rows(cells))


def training(cells: Iterable[Record]) -> str:
    names = ("dense", "compact", "rebuild", "plain chain", "tltorch factorized", "tltorch reconstructed", "torch-mpo")
    columns = (
        Column("cell", "cell"),
        *(Column(name, f"{name} µs", ",.0f") for name in names),
        Column("gain", "dense/compact", ".2f"),
        Column("autograd gain", "better of rebuild and plain/compact", ".2f"),
        Column("chosen", "plan"),
    )
    rows = [
        {
            "cell": _within_shape(cell),
            **{name: _micro(cell, name) for name in names},
            "gain": ratio(cell, "dense"),
            "autograd gain": over_autograd(cell),
            "chosen": cell["plans"]["compact"]["chosen"],
        }
        for cell in cells
    ]
    return markdown(columns, rows)


def _means(cells: Iterable[Record], gains: dict[str, Callable[[Record], float | None]]) -> str:
    columns = (Column("shape", "shape"), Column("cells", "cells"), *(Column(name, name, ".2f") for name in gains))
    rows = [
        {
            "shape": name,
            "cells": len(group),
            **{label: geometric_mean(gain(cell) for cell in group) for label, gain in gains.items()},
        }
        for name, group in by_shape(cells)
    ]
    return markdown(columns, rows)


def forward_means(cells: Iterable[Record]) -> str:
    return _means(
        cells,
        {
            "dense/compact": lambda cell: ratio(cell, "dense"),
            "dense/fast": lambda cell: ratio(cell, "dense", "fast"),
            "low rank/compact": lambda cell: ratio(cell, "low rank"),
            "predicted plan/compact": lambda cell: ratio(cell, "predicted"),
            "best peer/compact": over_best_peer,
            "tltorch factorized/compact": lambda cell: ratio(cell, "tltorch factorized"),
        },
    )


def training_means(cells: Iterable[Record]) -> str:
    return _means(
        cells,
        {
            "dense/compact": lambda cell: ratio(cell, "dense"),
            "better of rebuild and plain/compact": over_autograd,
            "tltorch factorized/compact": lambda cell: ratio(cell, "tltorch factorized"),
            "tltorch reconstructed/compact": lambda cell: ratio(cell, "tltorch reconstructed"),
            "torch-mpo/compact": lambda cell: ratio(cell, "torch-mpo"),
        },
    )


def target_summary(checked: Sequence[Target]) -> str:
    """Table of targets: whether each is met, and the measurement, without the cells that miss it."""
    met = {True: "yes", False: "**no**", None: None}
    rows = [{"text": target.text, "met": met[target.met], "measured": target.measured} for target in checked]
    return markdown((Column("text", "target"), Column("met", "met"), Column("measured", "measured")), rows)


def targets(checked: Sequence[Target]) -> str:
    columns = (
        Column("text", "target"),
        Column("met", "met"),
        Column("measured", "measured"),
        Column("missed", "missed worst in"),
    )
    rows = [
        {
            "text": target.text,
            "met": {True: "yes", False: "**no**", None: None}[target.met],
            "measured": target.measured,
            "missed": "; ".join(target.missed[:_SHOWN_MISSES]) or None,
        }
        for target in checked
    ]
    return markdown(columns, rows)


def decomposition(records: Iterable[Record]) -> str:
    columns = (
        Column("cell", "cell"),
        Column("method", "method"),
        Column("seconds", "ms", ",.1f"),
        Column("gain", "TensorLy/method", ".2f"),
        Column("error", "relative error", ".6f"),
        Column("above", "above the exact", "+.3%"),
    )
    rows = [
        {
            "cell": record["cell"],
            "method": method,
            "seconds": timing["median"] * 1e3,
            "gain": ratio(record, "TensorLy", method),
            "error": record["errors"][method],
            "above": record["above_exact"][method],
        }
        for record in records
        for method, timing in record["timings"].items()
    ]
    return markdown(columns, rows)


def planning(records: Iterable[Record]) -> str:
    columns = (
        Column("cell", "chain"),
        Column("shapes", "shapes"),
        Column("median", "median ms", ".2f"),
        Column("maximum", "slowest ms", ".2f"),
    )
    rows = [{**record, **{key: record[key] * 1e3 for key in ("median", "maximum")}} for record in records]
    return markdown(columns, rows)


def dispatch(records: Iterable[Record]) -> str:
    columns = (
        Column("cell", "layer"),
        Column("layer", "layer µs", ".1f"),
        Column("products", "its products µs", ".1f"),
        Column("overhead", "beyond them µs", ".1f"),
        Column("dense", "dense µs", ".1f"),
        Column("chosen", "plan"),
    )
    rows = []
    for record in records:
        times = {name: _micro(record, name) for name in ("layer", "products", "dense")}
        overhead = times["layer"] - times["products"]
        rows.append({"cell": record["cell"], "chosen": record["chosen"], **times, "overhead": overhead})
    return markdown(columns, rows)


def memory(records: Iterable[Record]) -> str:
    names = ("dense", "compact", "tltorch factorized", "tltorch reconstructed", "torch-mpo", "plain chain")
    columns = (
        Column("cell", "cell"),
        *(Column(name, f"{name} MiB", ",.1f") for name in names),
        Column("over", "compact, less what rebuilding needs, MiB", ",.1f"),
        Column("chosen", "plan"),
    )
    rows = [
        {
            "cell": record["cell"],
            **{name: record["beyond"][name] / 2**20 if name in record["beyond"] else None for name in names},
            "over": memory_over(record) / 2**20,
            "chosen": record["plans"]["compact"]["chosen"],
        }
        for record in records
    ]
    return markdown(columns, rows)


def lookup(records: Iterable[Record]) -> str:
    columns = (
        Column("form", "form"),
        Column("size", "tokens of a table"),
        Column("tokens", "tokens"),
        Column("shrink", "smaller by", ",.1f"),
        Column("dense", "dense ms", ".2f"),
        Column("rows", "this ms", ".2f"),
        Column("ratio", "this / dense", ".2f"),
        Column("training", "training, this / dense", ".2f"),
        Column("beyond", "MiB beyond the rows", ".2f"),
        Column("share", "of the dense table", ".2%"),
    )
    rows = []
    for record in records:
        tokens, words, columns_ = record["size"]
        dense, mine = median(record, "dense"), median(record, "rows")
        rows.append(
            {
                **record,
                "size": f"{tokens:,} of {words:,}x{columns_}",
                "shrink": words * columns_ / record["parameters"],
                "dense": dense * 1e3,
                "rows": mine * 1e3,
                "ratio": mine / dense,
                "training": record["training"]["rows"]["median"] / record["training"]["dense"]["median"],
                "beyond": record["beyond"] / 2**20,
                "share": record["beyond"] / record["table"],
            }
        )
    return markdown(columns, rows)


def left_out(groups: dict[str, list[Record]]) -> str:
    """Table of excluded implementations, with the reason and the number of cells; the records have the details."""
    counts = Counter(
        (group, name, "one call takes over 5 s, here or by its time at fewer rows" if "one call took" in why else why)
        for group, records in groups.items()
        for record in records
        for name, why in record.get("missing", {}).items()
    )
    columns = (Column("group", "group"), Column("name", "left out"), Column("why", "why"), Column("cells", "cells"))
    rows = [
        {"group": group, "name": name, "why": why.replace("|", "/").replace("\n", " "), "cells": count}
        for (group, name, why), count in sorted(counts.items())
    ]
    return markdown(columns, rows) if rows else "Nothing."
