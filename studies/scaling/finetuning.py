"""Tokens per second of a finetuning by one and by several processes of one thread each, which share every batch.

From the root of a checkout, with a compressed model, its dense teacher and a text (ten minutes for SmolLM2):

    python studies/scaling/finetuning.py small smollm2 wikitext-2-valid.txt --processes 2 --processes 1
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

RECORD = Path(__file__).with_suffix(".json")


def measured(model: str, teacher: str, text: Path, steps: int, processes: int) -> dict[str, Any]:
    """Finetune for some steps of four windows, and return the tokens per second and the losses."""
    training = {"steps": steps, "batch_size": 4, "learning_rate": 6e-5}
    with tempfile.TemporaryDirectory() as folder:
        section = {"text": str(text.resolve()), "training": training}
        recipe = {"model": str(Path(teacher).resolve()), "finetune": section}
        Path(folder, "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "mpochain"]
        command += ["finetune", model, "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/out", "--quiet"]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        record = json.loads(Path(folder, "out", "finetune.json").read_text(encoding="utf-8"))
    return {
        "processes": processes,
        "tokens_per_second": record["training"]["tokens_per_second"],
        "peak_bytes": record["peak_bytes"],
        "losses": record["training"]["losses"],
    }


def main(model: str, teacher: str, text: Path, processes: Annotated[list[int], typer.Option()], steps: int = 5) -> None:
    """Measure, and write the record."""
    runs = [measured(model, teacher, text, steps, number) for number in processes]
    setting = {"model": Path(model).name, "teacher": Path(teacher).name, "text": identified(text), "steps": steps}
    record = {"setting": setting, "runs": runs, "provenance": provenance(threads=1, commit=True)}
    write_bytes(RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
