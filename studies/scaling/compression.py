"""Time of a compression by one and by several processes of one thread each.

From the root of a checkout, with a model of transformers and a text (half an hour for SmolLM2 on two cores):

    python -m studies.scaling.compression smollm2 wikitext-2-valid.txt --processes 1 --processes 2
    python -m studies.scaling.compression smollm2 wikitext-2-valid.txt --processes 1 --stream
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
STREAMED = RECORD.with_name("streamed.json")


def measured(
    model: str, text: Path, windows: int, budget: float, processes: int, *, stream: bool = False
) -> dict[str, Any]:
    """Compress once, and return the seconds of the compression itself, without reading and writing the model."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "mpochain"]
        command += ["compress", model, "--budget", str(budget), "--calibration", str(text), "--no-time", "--quiet"]
        command += ["--calibration-windows", str(windows), "--out", f"{folder}/out", *(["--stream"] if stream else [])]
        subprocess.run(command, env=environment, check=True)
        report = json.loads(Path(folder, "out", "report.json").read_text(encoding="utf-8"))
    options = ["--budget", str(budget), "--calibration-windows", str(windows), *(["--stream"] if stream else [])]
    phases = predicted(model, processes, *options)
    layers = report["compression"]["layers"]
    return {
        "processes": processes,
        "seconds": report["compression"]["seconds"],
        "peak_bytes": report["peak_bytes"],
        "predicted_seconds": sum(phase["seconds"] for phase in phases),
        "predicted_peak_bytes": max(phase["peak_bytes"] for phase in phases),
        "forms": [layer["form"] for layer in layers],
    }


def main(
    model: str,
    text: Path,
    processes: Annotated[list[int], typer.Option()],
    windows: int = 8,
    budget: float = 0.8,
    stream: Annotated[bool, typer.Option("--stream")] = False,
) -> None:
    """Measure, and write the record."""
    runs = [measured(model, text, windows, budget, number, stream=stream) for number in processes]
    setting = {"model": Path(model).name, "text": identified(text), "windows": windows, "budget": budget}
    record = {"setting": setting, "runs": runs, "provenance": provenance(threads=1, commit=True)}
    write_bytes(STREAMED if stream else RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
