"""Results page of the demo, with JSON and figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mpochain.report import markdown
from mpochain.report.figures import Series, draw
from mpochain.report.origin import commit_name
from mpochain.system.files import write_bytes
from studies.picogpt.demo.result import COLUMNS, DemoResult

__all__ = ["write_page"]


def write_page(result: DemoResult, out: Path) -> None:
    """Write ``demo.json``, ``demo.md`` and the figures."""
    records = [asdict(row) for row in result.rows]
    origin = result.provenance | {"commit": commit_name(result.provenance)}
    write_bytes(out / "demo.json", json.dumps(asdict(result), indent=2, ensure_ascii=False).encode())
    page = (
        f"# PicoGPT, dense and as chains\n\nCorpus: {result.corpus}.\nDense model: {result.dense_model}.\n\n"
        f"{markdown(COLUMNS, records)}\n\n"
        "Loss in nats per token and token accuracy on the whole validation split; weight error is the relative "
        "Frobenius error of all linear layers together; `ms one` and `ms batch` are medians of forward passes over 1 "
        f"and {result.setting['batch_size']} sequences of 256 tokens, plans chosen by cost model.\n\n"
        + "".join(f"- {key}: {value}\n" for key, value in (result.setting | origin).items())
    )
    write_bytes(out / "demo.md", page.encode())
    dense, *rest = result.rows
    chains = [row for row in rest if row.error is not None]
    trained = [row for row in rest if row.error is None]
    versions = f"mpochain {origin['mpochain']}, commit {origin['commit']}, torch {origin['torch']}"
    note = f"{versions}; {result.setting['corpus']}"
    curve: dict[str, list[float | None]] = {
        "as decomposed": [row.accuracy_before for row in chains],
        "after finetuning": [row.accuracy_after for row in chains],
    }
    draw(
        out / "accuracy.png",
        [
            Series(label, [row.parameters for row in chains], values, names=[row.name for row in chains])
            for label, points in curve.items()
            if len(values := [point for point in points if point is not None]) == len(chains)
        ]
        + [
            Series(
                label,
                [row.parameters for row in rows],
                [row.accuracy_before for row in rows],
                line=False,
                names=[row.name for row in rows],
            )
            for label, rows in (("chains, trained", trained), ("dense", [dense]))
            if rows
        ],
        title="Validation accuracy against size",
        x="parameters",
        y="token accuracy",
        axes={"xscale": "log"},
        note=note,
    )
    draw(
        out / "errors.png",
        [Series(row.name, list(row.layer_errors), list(row.layer_errors.values())) for row in chains],
        title="Relative error of each linear layer after TT-SVD",
        x="layer",
        y="relative Frobenius error",
        axes={"ylim": (0, 1.02)},
        note=note,
    )
    (out / "losses.png").unlink(missing_ok=True)  # an earlier run may have left it
    if any(row.finetune_losses for row in chains):
        draw(
            out / "losses.png",
            [
                Series(row.name, list(range(1, len(row.finetune_losses) + 1)), row.finetune_losses, markers=False)
                for row in chains
            ],
            title="Finetuning after TT-SVD",
            x="step",
            y="training loss, nats per token",
            note=note,
        )
