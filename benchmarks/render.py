"""``docs/benchmarks.md`` and its figures from the committed results: ``python benchmarks/render.py [grid]``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mpochain.planning import plan
from mpochain.report import Column, markdown
from mpochain.report.figures import Series, draw
from mpochain.spec import ChainSpec

ROOT = Path(__file__).parent.parent
OWN = ("dense", "low rank", "compact", "fast")
AUTOGRAD = ("dense", "compact", "rebuild", "plain chain")


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def median(cell: dict[str, Any], name: str) -> float | None:
    timing = cell["timings"].get(name)
    return timing["median"] if timing else None


def ratio(cell: dict[str, Any], slow: str, fast: str) -> float | None:
    a, b = median(cell, slow), median(cell, fast)
    return a / b if a and b else None


def best_peer(cell: dict[str, Any], own: Sequence[str]) -> str | None:
    peers = {name: timing["median"] for name, timing in cell["timings"].items() if name not in own}
    return min(peers, key=peers.__getitem__) if peers else None


def forward_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for cell in cells:
        peer = best_peer(cell, OWN)
        made = plan(ChainSpec.from_dict(cell["spec"]), cell["batch"])
        rows.append(
            {
                "cell": cell["cell"],
                **{name: value * 1e6 if (value := median(cell, name)) else None for name in OWN},
                "peer": f"{peer} {median(cell, peer) * 1e6:,.0f}" if peer else None,
                "gain": ratio(cell, "dense", "compact"),
                "fast gain": ratio(cell, "dense", "fast"),
                "peer gain": ratio(cell, peer, "compact") if peer else None,
                "macs": made.macs / made.dense_macs,
                "chosen": str(made.chosen),
                "spread": (cell["timings"]["compact"]["high"] - cell["timings"]["compact"]["low"])
                / cell["timings"]["compact"]["median"],
            }
        )
    return rows


FORWARD = (
    Column("cell", "cell"),
    Column("dense", "dense µs", ",.0f"),
    Column("low rank", "low rank µs", ",.0f"),
    Column("compact", "compact µs", ",.0f"),
    Column("spread", "spread", ".0%"),
    Column("fast", "fast µs", ",.0f"),
    Column("peer", "best peer µs"),
    Column("gain", "dense/compact", ".2f"),
    Column("fast gain", "dense/fast", ".2f"),
    Column("peer gain", "peer/compact", ".2f"),
    Column("macs", "MACs/dense", ".2f"),
    Column("chosen", "plan"),
)

TRAINING = (
    Column("cell", "cell"),
    Column("dense", "dense µs", ",.0f"),
    Column("compact", "chain µs", ",.0f"),
    Column("rebuild", "rebuild µs", ",.0f"),
    Column("plain chain", "plain chain µs", ",.0f"),
    Column("tltorch factorized", "tltorch factorized µs", ",.0f"),
    Column("tltorch reconstructed", "tltorch reconstructed µs", ",.0f"),
    Column("gain", "dense/chain", ".2f"),
)


def training_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [column.key for column in TRAINING[1:-1]]
    return [
        {
            "cell": cell["cell"],
            **{name: value * 1e6 if (value := median(cell, name)) else None for name in names},
            "gain": ratio(cell, "dense", "compact"),
        }
        for cell in cells
    ]


def share(values: list[float | None], least: float) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(value >= least for value in known)} of {len(known)}"


def summary(forward: list[dict[str, Any]], training: list[dict[str, Any]]) -> list[str]:
    lines = []
    if forward:
        rows = forward_rows(forward)
        peers = sorted({name for cell in forward for name in cell["timings"] if name not in OWN})
        lines += [
            f"- Compact inference beats dense in {share([row['gain'] for row in rows], 1.0)} cells, and is at least as "
            f"fast as the best peer (5 % tolerance) in {share([row['peer gain'] for row in rows], 0.95)}.",
            f"- Fast inference is no slower than dense (5 % tolerance) in "
            f"{share([row['fast gain'] for row in rows], 0.95)} cells.",
        ]
        mean = geometric_mean(row["peer gain"] for row in rows if row["peer gain"])
        if mean:
            lines.append(f"- Geometric mean over the best peer of each cell: {mean:.2f}.")
        for peer in peers:
            gains = [r for cell in forward if (r := ratio(cell, peer, "compact"))]
            lines.append(f"- Geometric mean over {peer}: {geometric_mean(gains):.2f} ({len(gains)} cells).")
    if training:
        best = []
        for cell in training:
            own = median(cell, "compact")
            others = [t for name in ("rebuild", "plain chain") if (t := median(cell, name))]
            best.append(min(others) / own)
        lines.append(
            f"- A training step is no slower than the better of rebuilding and a plain chain by autograd (5 % "
            f"tolerance) in {share(best, 0.95)} cells; geometric mean {geometric_mean(best):.2f}."
        )
        for peer in ("tltorch factorized", "tltorch reconstructed"):
            gains = [r for cell in training if (r := ratio(cell, peer, "compact"))]
            if gains:
                lines.append(
                    f"- Training, geometric mean over {peer}: {geometric_mean(gains):.2f} ({len(gains)} cells)."
                )
    return lines


def main(grid: str) -> None:
    os.environ["MPOCHAIN_BENCH_GRID"] = grid
    sys.path.insert(0, str(Path(__file__).parent))
    import results

    forward, training = (list(results.load(group).values()) for group in ("forward", "training"))
    if not forward:
        sys.exit(f"no results of the {grid} grid; run `make bench` first")
    made = [cell["provenance"] for cell in forward + training]
    keys = ("commit", "processor", "cpus", "threads", "python", "torch", "numpy", "opt_einsum")
    origin = {key: sorted({str(record.get(key)) for record in made}) for key in keys}
    figures = ROOT / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    rows = forward_rows(forward)
    draw(
        figures / "forward.png",
        [
            Series(label, [row["macs"] for row in rows], [row[key] for row in rows], line=False)
            for label, key in (("compact", "gain"), ("fast", "fast gain"))
        ],
        title="Inference: speed-up over the dense layer against multiply-adds",
        x="multiply-adds of the plan over those of the dense layer",
        y="dense time / chain time",
        axes={"xscale": "log", "yscale": "log"},
        note=f"{grid} grid, commit {', '.join(c[:12] for c in origin['commit'])}, {origin['threads'][0]} threads",
    )
    page = [
        "# Benchmarks",
        "",
        f"Made by `make bench` and `python benchmarks/render.py {grid}` from `benchmarks/results/*-{grid}.jsonl`; not "
        "edited by hand. Medians in microseconds, float32, rounds of all implementations interleaved in one run; "
        "spread is the interquartile range of the compact chain over its median. Losses are shown like gains.",
        "",
        *[f"- {key}: {', '.join(values)}" for key, values in origin.items()],
        "",
        "## Summary",
        "",
        *summary(forward, training),
        "",
        "![speed-up against multiply-adds](figures/forward.png)",
        "",
        "## Inference",
        "",
        markdown(FORWARD, rows),
        "",
    ]
    if training:
        page += ["## Training step (forward and backward)", "", markdown(TRAINING, training_rows(training)), ""]
    missing = {f"{name}: {why}" for cell in forward + training for name, why in cell["missing"].items()}
    if missing:
        page += ["## Left out", "", *[f"- {line}" for line in sorted(missing)], ""]
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(page), encoding="utf-8")
    print(json.dumps({"cells": len(forward) + len(training), "page": "docs/benchmarks.md"}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small")
