"""Tokens per second of a finetuning by one and by several processes of one thread each, which share every batch.

From the root of a checkout, with a model compressed to 80 %, its dense teacher and a text (ten minutes for SmolLM2):

    python -m studies.scaling.finetuning small smollm2 wikitext-2-valid.txt --processes 2 --processes 1 --sharded 2
    python studies/scaling/page.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.workflows.texts import identified
from studies.scaling.predicted import predicted

RECORD = Path(__file__).with_suffix(".json")

# Of the compressed model, for the prediction.
_BUDGET = 0.8


def measured(model: str, teacher: str, text: Path, steps: int, processes: int, *, shard: bool) -> dict[str, Any]:
    """Finetune for some steps of four windows, and return the tokens per second and the losses."""
    training = {"steps": steps, "batch_size": 4, "learning_rate": 6e-5}
    with tempfile.TemporaryDirectory() as folder:
        section = {"text": str(text.resolve()), "training": training}
        recipe = {"model": str(Path(teacher).resolve()), "finetune": section}
        Path(folder, "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "mpochain"]
        command += ["finetune", model, "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/out", "--quiet"]
        command += ["--shard"] if shard else []
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        record = json.loads(Path(folder, "out", "finetune.json").read_text(encoding="utf-8"))
    options = ["--steps", str(steps), "--budget", str(_BUDGET), *(["--shard"] if shard else [])]
    phase = predicted(teacher, processes, *options)[-1]
    return {
        "processes": processes,
        "sharded": shard,
        "predicted_tokens_per_second": steps * 4 * 512 / phase["seconds"],
        "predicted_peak_bytes": phase["peak_bytes"],
        "tokens_per_second": record["training"]["tokens_per_second"],
        "peak_bytes": record["peak_bytes"],
        "losses": record["training"]["losses"],
    }


def main(
    model: str,
    teacher: str,
    text: Path,
    processes: Annotated[list[int], typer.Option()],
    sharded: Annotated[list[int] | None, typer.Option()] = None,
    steps: int = 5,
) -> None:
    """Measure, and write the record."""
    runs = [measured(model, teacher, text, steps, number, shard=False) for number in processes]
    runs += [measured(model, teacher, text, steps, number, shard=True) for number in sharded or []]
    setting = {"model": Path(model).name, "teacher": Path(teacher).name, "text": identified(text), "steps": steps}
    record = {"setting": setting, "runs": runs, "provenance": provenance(threads=1, commit=True)}
    write_bytes(RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
