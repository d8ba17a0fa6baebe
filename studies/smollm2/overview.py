"""Figure of perplexity against size, beside SVD-LLM: ``python studies/smollm2/overview.py [file]``.

Drawn from the records of the comparison in ``runs/`` alone; README.md shows it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mpochain.report.figures import Series, draw

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).parent / "runs"
BUDGETS = ("0.6", "0.8", "0.9")
CURVES = {
    "SVD-LLM": "svd_llm-{}",
    "SVD-LLM, finetuned": "svd_llm-{}-healed",
    "mpochain": "interpolative-{}",
    "mpochain, finetuned": "interpolative-{}-healed",
}


def _record(name: str) -> dict[str, Any]:
    return json.loads((RUNS / f"{name}.json").read_text(encoding="utf-8"))


def _perplexity(name: str) -> float:
    return _record(name)["perplexity"]["perplexity"]


def _percent_kept(name: str) -> float:
    layers = _record(name)["layers"]
    return 100 * layers["parameters_after"] / layers["parameters_before"]


def write_figure(path: Path) -> None:
    """Draw the figure into a PNG file."""
    dense = _record("dense")["perplexity"]
    series = [Series("dense", [100.0], [dense["perplexity"]], line=False)]
    for label, pattern in CURVES.items():
        # Finetuning changes no size, so its records do not repeat it.
        sizes = [_percent_kept(pattern.removesuffix("-healed").format(budget)) for budget in BUDGETS]
        series.append(Series(label, sizes, [_perplexity(pattern.format(budget)) for budget in BUDGETS]))
    draw(
        path,
        series,
        title="SmolLM2-135M: perplexity against size, less is better",
        x="parameters of the linear layers that are kept, %",
        y="perplexity on WikiText-2 (test)",
        axes={"ylim": (0, 120)},
        note=f"{dense['tokens']:,} tokens in windows of {dense['window']}; equal budgets and texts for both methods",
    )


if __name__ == "__main__":
    write_figure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures" / "perplexity.png")
