"""Peak memory and time of a streamed compression of a random Llama of any size, whose weights are written first.

From the root of a checkout, with a text and 20 GB of free disk (half an hour for 8.6 GB on two cores):

    python studies/scaling/streaming.py wikitext-2-valid.txt --layers 160
    python studies/scaling/page.py

The weights are written block by block, so that no step needs the memory of the whole model.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.workflows.texts import identified

RECORD = Path(__file__).with_suffix(".json")
_VOCABULARY = 256


def write_model(folder: Path, config: LlamaConfig) -> int:
    """Write a random model, one file for each block; return the bytes of its tensors."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        block = name.split(".")[2] if ".layers." in name else "outside"
        parts.setdefault(f"model-{block}.safetensors", []).append(name)
    size = 0
    for number, (file, names) in enumerate(parts.items()):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name in names:
            value = torch.ones(shapes[name])
            if value.ndim > 1:
                value.normal_(0, shapes[name][-1] ** -0.5, generator=generator)
            tensors[name] = value
            size += value.nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": size}, "weight_map": {n: file for file, names in parts.items() for n in names}}
    write_bytes(folder / "model.safetensors.index.json", json.dumps(index).encode())
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    config.save_pretrained(folder)
    letters = {chr(number + 32): number for number in range(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="~"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="~").save_pretrained(folder)
    return size


def measured(command: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and the peak memory of all its processes together, in bytes."""
    began, peak = time.perf_counter(), 0
    running = subprocess.Popen(command)
    while running.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process has just ended
            first = psutil.Process(running.pid)
            every = [first, *first.children(recursive=True)]
            peak = max(peak, sum(process.memory_info().rss for process in every))
        time.sleep(0.05)
    if running.returncode:
        raise SystemExit(running.returncode)
    return time.perf_counter() - began, peak


def main(
    text: Path,
    processes: Annotated[list[int] | None, typer.Option()] = None,
    hidden: int = 1024,
    inner: int = 2816,
    layers: int = 160,
    windows: int = 8,
    window: int = 256,
    budget: float = 0.8,
) -> None:
    """Write the model, compress it with each number of processes, and write the record."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2 * window,
        tie_word_embeddings=False,
    )
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        size = write_model(Path(scratch, "dense"), config)
        for number in processes or [1]:
            out = Path(scratch, f"out-{number}")
            command = [sys.executable, "-m"]
            command += ["torch.distributed.run", "--nproc-per-node", str(number), "-m"] if number > 1 else []
            command += ["mpochain", "compress", f"{scratch}/dense", "--stream", "--budget", str(budget), "--quiet"]
            command += ["--calibration", str(text), "--calibration-windows", str(windows), "--window", str(window)]
            seconds, peak = measured([*command, "--out", str(out)])
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
            runs.append(
                {
                    "processes": number,
                    "seconds": seconds,
                    "compression_seconds": report["compression"]["seconds"],
                    "peak_bytes": peak,
                    "bytes_after": after,
                }
            )
    setting = {
        "hidden": hidden,
        "inner": inner,
        "layers": layers,
        "model_bytes": size,
        "text": identified(text),
        "windows": windows,
        "window": window,
        "budget": budget,
    }
    record = {"setting": setting, "runs": runs, "provenance": provenance(threads=torch.get_num_threads(), commit=True)}
    write_bytes(RECORD, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
