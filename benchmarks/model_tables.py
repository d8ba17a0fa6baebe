"""Table of whole models on the benchmark pages."""

from __future__ import annotations

from collections.abc import Iterable

from ratios import Record

from mpochain.report import Column, markdown


def models(records: Iterable[Record]) -> str:
    """A row for every variant of every model and element type."""
    columns = (
        Column("cell", "model"),
        Column("variant", "variant"),
        Column("prefill", "prefill, tokens/s", ",.0f"),
        Column("prefill share", "of dense", ".2f"),
        Column("prefill macs", "multiply-adds", ".2f"),
        Column("token", "one by one, tokens/s", ",.1f"),
        Column("token share", "of dense", ".2f"),
        Column("token macs", "multiply-adds", ".2f"),
        Column("training share", "training step, of dense", ".2f"),
        Column("peak", "peak of the prefill, MiB", ",.0f"),
        Column("bytes", "weights, MB", ",.0f"),
    )
    rows = []
    for record in records:
        timings = record["timings"]
        for variant, timing in timings["prefill"].items():
            row = {"cell": record["cell"], "variant": variant, "prefill": record["prompt"] / timing["median"]}
            for kind in ("prefill", "token", "training"):
                mine, dense = (timings[kind].get(name, {}).get("median") for name in (variant, "dense"))
                row[f"{kind} share"] = mine / dense if mine and dense else None
            token = timings["token"].get(variant)
            row["token"] = 1 / token["median"] if token else None
            share = record["macs"].get(variant, {})
            row |= {f"{kind} macs": share.get(kind) if timings[kind] else None for kind in ("prefill", "token")}
            rows.append(row | {"peak": record["peaks"][variant] / 2**20, "bytes": record["bytes"][variant] / 1e6})
    return markdown(columns, rows)
