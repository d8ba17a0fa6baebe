"""Benchmark summary page, figures and full tables: ``python benchmarks/render.py [grid [folder]]``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import model_tables
import regret_tables
import result_tables as tables
from cell_tables import cell_tables
from ratios import OWN, Record, geometric_mean, over_autograd, over_best_peer, ratio
from targets import targets

from mpochain.report.figures import Series, draw

ROOT = Path(__file__).parent.parent
GROUPS = ("forward", "training", "decomposition", "planning", "dispatch", "memory", "lookup", "models", "regret")
DTYPES = ("float32", "bfloat16")

Groups = dict[str, list[Record]]


def provenance(groups: Groups) -> dict[str, list[str]]:
    """Provenance of all records: every distinct value of each key."""
    provenances = [record["provenance"] for records in groups.values() for record in records]
    keys = ("commit", "processor", "cpus", "threads", "python", "torch", "numpy", "opt_einsum")
    return {key: sorted({str(origin.get(key)) for origin in provenances}) for key in keys}


def share(values: Iterable[float | None], least: float) -> str:
    """Count of the known values that are at least ``least``, as text."""
    known = [value for value in values if value is not None]
    return f"{sum(value >= least for value in known)} of {len(known)}"


def _of(groups: Groups, group: str, dtype: str) -> list[Record]:
    return [record for record in groups.get(group, []) if record["dtype"] == dtype]


def forward_summary(cells: list[Record], dtype: str) -> list[str]:
    """Summary lines on inference: counts of wins, and geometric means."""
    lines = [
        f"- Inference, {dtype}: compact beats dense in {share([ratio(cell, 'dense') for cell in cells], 1.0)} cells "
        f"and the best peer in {share([over_best_peer(cell) for cell in cells], 1.0)}; fast beats dense in "
        f"{share([ratio(cell, 'dense', 'fast') for cell in cells], 1.0)}. Measuring plans makes compact "
        f"{geometric_mean(ratio(cell, 'predicted') for cell in cells):.2f}x as fast as the cost model alone.",
    ]
    means = []
    for peer in sorted({name for cell in cells for name in cell["timings"] if name not in OWN}):
        gains = [gain for cell in cells if (gain := ratio(cell, peer))]
        means.append(f"{peer} {geometric_mean(gains):.2f} ({len(gains)} cells)")
    if means:
        lines.append(f"- Inference, {dtype}, geometric mean of peer/compact: {', '.join(means)}.")
    return lines


def training_summary(cells: list[Record], dtype: str) -> list[str]:
    """Summary lines on training: counts of wins, and geometric means."""
    means = []
    for name in ("dense", "rebuild", "plain chain", "tltorch factorized", "tltorch reconstructed", "torch-mpo"):
        gains = [gain for cell in cells if (gain := ratio(cell, name))]
        if gains:
            means.append(f"{name} {geometric_mean(gains):.2f} ({len(gains)} cells)")
    return [
        f"- Training, {dtype}: the chain beats dense in {share([ratio(cell, 'dense') for cell in cells], 1.0)} cells "
        f"and the faster autograd baseline in {share([over_autograd(cell) for cell in cells], 1.0)}; geometric mean of "
        f"other/chain: {', '.join(means)}."
    ]


def summary(groups: Groups) -> list[str]:
    """Summary lines on the whole grid."""
    parts = (("forward", forward_summary), ("training", training_summary))
    return [
        line
        for group, lines in parts
        for dtype in DTYPES
        if (cells := _of(groups, group, dtype))
        for line in lines(cells, dtype)
    ]


def draw_forward(path: Path, groups: Groups, note: str) -> None:
    """Draw the speed-up over dense against multiply-adds."""
    series = []
    for dtype in DTYPES:
        rows = tables.forward_rows(_of(groups, "forward", dtype))
        for label, key in (("compact", "gain"), ("fast", "fast gain")):
            if rows:
                macs, gains = [row["macs"] for row in rows], [row[key] for row in rows]
                series.append(Series(f"{label}, {dtype}", macs, gains, line=False))
    draw(
        path,
        series,
        title="Inference: speed-up over the dense layer against multiply-adds (above the line: faster)",
        x="multiply-adds of the compact plan over those of the dense layer",
        y="dense time / chain time",
        axes={"xscale": "log", "yscale": "log"},
        level=1.0,
        note=note,
    )


def draw_peers(path: Path, groups: Groups, note: str) -> None:
    """Draw the speed-up of compact over the best peer, with cells sorted."""
    series = []
    for dtype in DTYPES:
        gains = sorted(gain for cell in _of(groups, "forward", dtype) if (gain := over_best_peer(cell)))
        if gains:
            places = [100 * (k + 0.5) / len(gains) for k in range(len(gains))]
            series.append(Series(dtype, places, gains, markers=len(gains) < 100))
    draw(
        path,
        series,
        title="Inference: compact beside the best peer of each cell (above the line: faster)",
        x="cells, from the worst to the best, %",
        y="best peer's time / compact time",
        axes={"yscale": "log"},
        level=1.0,
        note=note,
    )


def _progress(grid: str, groups: Groups) -> str:
    from grid import cells

    planned = len(cells(grid))
    return ", ".join(f"{group} {len(groups.get(group, []))} of {planned}" for group in ("forward", "training"))


def summary_page(grid: str, groups: Groups) -> str:
    """Markdown of the documentation page: targets, counts and means; the full tables have every cell."""
    command = "bench" if grid == "small" else "bench-full"
    lines = [
        "# Benchmarks",
        "",
        f"Generated by `make {command}` from `benchmarks/results/*-{grid}.jsonl`; not edited by hand. "
        f"`python benchmarks/render.py {grid}` writes this page again, and the tables of all cells to "
        f"`benchmarks/tables/{grid}.md`.",
        "",
        "- *compact*: the planned chain; only the cores are kept between calls.",
        "- *fast*: folded cores, up to the dense matrix, are kept between calls (`set_execution(layer, cache=True)`).",
        "- Times are medians. All implementations of a cell run in interleaved rounds on the same cores, and their "
        "outputs agree. Compact and fast run the plan that was measured to be fastest.",
        f"- Cells measured: {_progress(grid, groups)}. Cells in which dense took over 1.5 times its median for the "
        "shape were disturbed by another process, and were measured again (`benchmarks/disturbed.py`).",
        *[f"- {key}: {', '.join(short)}" for key, short in _short(provenance(groups)).items()],
        "",
        "## Targets",
        "",
        "Ratios within one run, float32. Missed targets come first.",
        "",
        tables.target_summary(targets(groups)),
        "",
    ]
    forward, training = groups.get("forward", []), groups.get("training", [])
    if forward or training:
        lines += ["## Summary", "", *summary(groups), ""]
    if forward:
        lines += [
            "![speed-up against multiply-adds](figures/forward.png)",
            "",
            "![compact beside the best peer](figures/peers.png)",
            "",
            "## Inference, geometric means by shape",
            "",
            tables.forward_means(forward),
            "",
        ]
    if groups.get("regret"):
        lines += [
            "## The default plan",
            "",
            "Time of a layer over that of the best of all its plans, float32, 16 rows and more, without constants or "
            "plans that were measured before: as predicted from shapes alone, and after ten calls, which a layer takes "
            "for finding the fastest plan. Compact execution has no dense matrix, so that no plan may come near the "
            "dense layer.",
            "",
            regret_tables.regret(groups["regret"]),
            "",
        ]
    if groups.get("models"):
        lines += [
            "## Whole models",
            "",
            "Random weights; every linear layer but the head in interpolative form at a share of its parameters, "
            "outputs in a random order. Prefill and training step read the prompt once (the loss of all its tokens, "
            "AdamW); a token is one more after the prompt, with a cache of keys and values. Shares are of the dense "
            "model in the same run; multiply-adds are those of linear layers, with the head for a token.",
            "",
            model_tables.models(groups["models"]),
            "",
        ]
    if training:
        lines += ["## Training steps, geometric means by shape", "", tables.training_means(training), ""]
    return "\n".join(lines)


def _short(origin: dict[str, list[str]]) -> dict[str, list[str]]:
    """Shorten commits to their first twelve digits."""
    return {key: [value[:12] for value in values] if key == "commit" else values for key, values in origin.items()}


def load_groups(grid: str) -> Groups:
    """Load the records of all groups of a grid; groups without records are left out."""
    os.environ["MPOCHAIN_BENCH_GRID"] = grid
    import results

    return {group: records for group in GROUPS if (records := list(results.load(group).values()))}


def main(grid: str = "small", folder: str = str(ROOT / "docs" / "results")) -> None:
    """Write the page and its figures into the folder, and the tables of all cells into ``benchmarks/tables``."""
    groups = load_groups(grid)
    if not groups:
        sys.exit(f"no results of the {grid} grid; run `make bench` first")
    page = Path(folder) / "benchmarks.md"
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    if "forward" in groups:
        origin = provenance(groups)
        commits = ", ".join(commit[:12] for commit in origin["commit"])
        note = f"{grid} grid, commit {commits}, {', '.join(origin['threads'])} threads"
        draw_forward(figures / "forward.png", groups, note)
        draw_peers(figures / "peers.png", groups, note)
    page.write_text(summary_page(grid, groups), encoding="utf-8")
    full = ROOT / "benchmarks" / "tables" / f"{grid}.md"
    full.parent.mkdir(exist_ok=True)
    full.write_text(cell_tables(grid, groups), encoding="utf-8")
    print(json.dumps({group: len(records) for group, records in groups.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
