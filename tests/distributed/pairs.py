"""Two processes that compute something together over gloo, each a new interpreter that runs this file."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import mpochain

PROCESSES = 2
_LONGEST = 240  # seconds


def run_pair(function, folder, *, longest=_LONGEST):
    """Call a function of a module of this folder in two processes, and return what each of them returns.

    Args:
        function: called as ``function(rank, folder)``.
        folder: an empty folder of this run; the processes meet at a file in it, so that no port is needed.
        longest: seconds to wait for a process; one that still runs is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tests = Path(__file__).parents[1]
    paths = [str(Path(mpochain.__file__).parents[1]), str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, __file__, function.__module__, function.__name__, str(folder)]
    with (folder / "output").open("w+") as output:
        processes = [
            subprocess.Popen([*arguments, str(rank)], env=environment, stdout=output, stderr=subprocess.STDOUT)
            for rank in range(PROCESSES)
        ]
        try:
            codes = [_code(process, longest) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        output.seek(0)
        assert codes == [0] * PROCESSES, output.read()[-8000:]
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(PROCESSES)]


def torchrun(folder, *arguments, processes=PROCESSES):
    """Run a command of mpochain in the processes of torchrun, in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "mpochain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def _code(process, longest):
    """The exit status of a process; None for one that did not end."""
    try:
        return process.wait(timeout=longest)
    except subprocess.TimeoutExpired:
        return None


def _main(module, name, folder, rank):
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    # FSDP2 says so of every module whose output is a view, such as nn.Linear of three axes.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    # DDP compares strides of axes of size 1 too.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    folder = Path(folder)
    store = dist.FileStore(str(folder / "store"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=PROCESSES)
    try:
        result = getattr(importlib.import_module(module), name)(int(rank), folder)
        torch.save(result, folder / f"result-{rank}")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
