"""One load in this process, for ``measure.py``: prints seconds and bytes as JSON.

``python one_load.py FOLDER transformers|mpochain [TINY]``: what has to be imported is loaded with the folder TINY
first, where one is given, so that the figures are those of FOLDER alone. They contain the logits of eight
tokens, since tensors are read from a mapped file when they are used.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

started = time.perf_counter(), time.process_time()

import torch  # noqa: E402 - importing is part of what is measured
from transformers import AutoModelForCausalLM  # noqa: E402


def load(folder: str, loader: str) -> torch.nn.Module:
    """Load a folder by one of the two."""
    if loader == "mpochain":
        import mpochain as mpo

        return mpo.load(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def resident() -> int:
    """Memory of this process now, in bytes, with mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmRSS" in line)
    return int(line.split()[1]) << 10


def main(folder: str, loader: str, tiny: str | None = None) -> None:
    """Load, compute a few logits, and print."""
    global started
    if "quantization_config" in json.loads(Path(folder, "config.json").read_text(encoding="utf-8")):
        import mpochain  # noqa: F401 - lets transformers read the folder

    ids = torch.arange(8)[None]
    with torch.inference_mode():
        if tiny is not None:
            load(tiny, loader).eval()(ids)
            started = time.perf_counter(), time.process_time()
        before = resident()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
        model = load(folder, loader).eval()
        loaded = time.perf_counter(), time.process_time()
        model(ids)
        finished = time.perf_counter(), time.process_time()
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    figures = {"load": loaded, "logits": finished}
    print(
        json.dumps(
            {
                **{f"{name}_seconds": wall - started[0] for name, (wall, _) in figures.items()},
                **{f"{name}_processor_seconds": used - started[1] for name, (_, used) in figures.items()},
                "peak_bytes": peak - before,
                "tensor_bytes": sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
