"""Time and memory of loading compressed folders beside the dense one, each time in a process of its own.

From the root of a checkout, with SmolLM2 and compressed folders of it (some minutes on two cores):

    mpochain compress smollm2 --budget 60% --out "smollm2 at 60%" --calibration wikitext-2-valid.txt
    mpochain compress smollm2 --budget "4.5 bits" --method rtn --out "smollm2 in 4 bits"
    python studies/loading/measure.py smollm2 "smollm2 at 60%" "smollm2 in 4 bits"
    python studies/loading/page.py

Files are dropped from the system's cache before some of the loads, so that reading them is measured as well; they must
not be mapped by another process then.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

import mpochain as mpo
from mpochain.report import provenance
from mpochain.system.files import write_bytes

HERE = Path(__file__).parent
RECORD = HERE / "loads.json"
_CHILD = HERE / "one_load.py"


def forget(folder: Path) -> None:
    """Ask the system to drop a folder's tensors from its cache."""
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def tiny_folders(model: Path, folder: Path) -> dict[bool, Path]:
    """A tiny dense model of the same architecture, and one with every form that the measured folders hold."""
    config = AutoConfig.from_pretrained(model)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size = 48, 64, 1, 64
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim = 24
    small = AutoModelForCausalLM.from_config(config).float()
    small.save_pretrained(folder / "dense")
    mpo.compress(small, 0.6, method="svd", targets=[r"re:.*attn.*"])
    mpo.compress(small, "8 bits", method="rtn", targets=[r"re:.*mlp.*"])
    mpo.save(small, folder / "compressed")
    return {False: folder / "dense", True: folder / "compressed"}


def one(folder: Path, loader: str, tiny: Path | None) -> dict[str, Any]:
    """Load once in a new process."""
    command = [sys.executable, str(_CHILD), str(folder), loader, *([str(tiny)] if tiny else [])]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main(dense: Path, compressed: list[Path], repeat: int = 5) -> None:
    """Load every folder in turn, ``repeat`` times each way, and write medians."""
    subjects = [(dense, "transformers"), *product(compressed, ("transformers", "mpochain"))]
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        tiny = tiny_folders(dense, Path(scratch))
        ways = {"new": (False, False), "ready": (True, False), "uncached": (True, True)}
        taken: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for _ in range(repeat):
            for way, (imported, cold) in ways.items():
                for index, (folder, loader) in enumerate(subjects):
                    if cold:
                        forget(folder)
                    result = one(folder, loader, tiny[folder != dense] if imported else None)
                    taken.setdefault((index, way), []).append(result)
    for (index, way), results in taken.items():
        folder, loader = subjects[index]
        medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
        runs.append({"folder": folder.name, "loader": loader, "way": way, **medians})
    record = {"repeat": repeat, "runs": runs, "provenance": provenance(threads=torch.get_num_threads(), commit=True)}
    write_bytes(RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
