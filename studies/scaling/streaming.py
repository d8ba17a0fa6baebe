"""Peak memory and time of a streamed compression of a random Llama of any size, whose weights are written first.

From the root of a checkout, with a text and 20 GB of free disk (an hour or two for 8.6 GB on two cores):

    python studies/scaling/streaming.py wikitext-2-valid.txt --scratch scratch
    python studies/scaling/page.py

The weights are written block by block, so that no step needs the memory of the whole model. An interrupted run goes on
where it was: what was measured so far lies in the scratch folder, beside the weights and the unfinished compression.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
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


def measured(command: list[str], kept: Path) -> dict[str, Any]:
    """Run a command; return its seconds and the peak memory of all its processes together, in bytes.

    Both are kept in a file, to which further runs of an interrupted command add.
    """
    before = json.loads(kept.read_text()) if kept.exists() else {"seconds": 0.0, "peak_bytes": 0, "starts": 0}
    peak, began, written = before["peak_bytes"], time.perf_counter(), 0.0
    running = subprocess.Popen(command)
    while True:
        ended = running.poll() is not None
        with contextlib.suppress(psutil.Error):  # a process has just ended
            first = psutil.Process(running.pid)
            every = [first, *first.children(recursive=True)]
            peak = max(peak, sum(process.memory_info().rss for process in every))
        seconds = time.perf_counter() - began
        values = {"seconds": before["seconds"] + seconds, "peak_bytes": peak, "starts": before["starts"] + 1}
        if ended or seconds > written + 10:
            write_bytes(kept, json.dumps(values).encode())
            written = seconds
        if ended:
            break
        time.sleep(0.05)
    if running.returncode:
        raise SystemExit(running.returncode)
    return values


def main(
    text: Path,
    scratch: Annotated[Path, typer.Option()],
    processes: Annotated[list[int] | None, typer.Option()] = None,
    hidden: int = 512,
    inner: int = 1408,
    layers: int = 672,
    windows: int = 6,
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
    dense = scratch / "dense"
    if not dense.exists():
        unfinished = scratch / "unfinished-dense"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_model(unfinished, config)
        unfinished.rename(dense)
    size = json.loads((dense / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    runs: list[dict[str, Any]] = []
    for number in processes or [1]:
        out = scratch / f"out-{number}"
        command = [sys.executable, "-m"]
        command += ["torch.distributed.run", "--nproc-per-node", str(number), "-m"] if number > 1 else []
        command += ["mpochain", "compress", str(dense), "--stream", "--budget", str(budget)]
        command += ["--calibration", str(text), "--calibration-windows", str(windows), "--window", str(window)]
        values = measured([*command, "--out", str(out)], scratch / f"measured-{number}.json")
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        seconds = report["compression"]["seconds"]
        runs.append({"processes": number, **values, "compression_seconds": seconds, "bytes_after": after})
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
