"""``mpochain plan-run``: predicted time, memory and traffic of a compression and a finetuning, before they are run."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from mpochain.cli.options import Dtype, Json, print_json

__all__ = ["plan_run"]

# FLOPs per second of one GPU in float32 products, if the user names no rate: no GPU was measured.
_GPU_RATE = 4e13


def plan_run(
    model: Annotated[str, typer.Argument(help="Folder with a config.json, or a name on the Hugging Face hub.")],
    budget: Annotated[float, typer.Option(help="Share of the parameters of the linear layers that is kept.")] = 0.8,
    processes: Annotated[
        int | None, typer.Option(help="Processes on CPUs, of one thread each unless --threads is given.", min=1)
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each process on CPUs.", min=1)] = 1,
    gpus: Annotated[int | None, typer.Option(help="GPUs, one process each.", min=1)] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each process, such as 80GB.")] = None,
    tflops: Annotated[
        float | None,
        typer.Option(help="TFLOP/s of large float32 products in a process; measured here for CPUs, 40 for a GPU."),
    ] = None,
    calibration_windows: Annotated[
        int | None, typer.Option(help="Calibration windows; by default those of compress, of a long text.", min=1)
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens per window.", min=2)] = 512,
    steps: Annotated[int, typer.Option(help="Steps of a finetuning; 0 for none.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Windows per step, of all processes.", min=1)] = 4,
    stream: Annotated[
        bool, typer.Option("--stream", help="Hold one block at a time, as compress --stream does.")
    ] = False,
    shard: Annotated[bool, typer.Option("--shard", help="Shard the finetuning, as finetune --shard does.")] = False,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Predict seconds, peak memory and bytes sent per process of a low-rank compression, from config.json alone."""
    from mpochain.errors import ArgumentError
    from mpochain.report import Column, text
    from mpochain.system.memory import peak_resident
    from mpochain.workflows.inputs import enough_windows
    from mpochain.workflows.model_sizes import read_sizes
    from mpochain.workflows.run_plan import Load, Resources, planned

    if processes is not None and gpus is not None:
        raise ArgumentError("give either --processes, on CPUs, or --gpus")
    if tflops is not None and not tflops > 0:
        raise ArgumentError(f"--tflops must be positive, got {tflops}")
    limit = None if memory is None else _bytes(memory)
    measured = tflops is None and gpus is None
    rate = tflops * 1e12 if tflops is not None else _GPU_RATE if gpus is not None else _rate(threads, processes or 1)
    sizes = read_sizes(model, window, dtype or "auto")
    windows = calibration_windows or enough_windows([target.module for target in sizes.layers.values()], window)
    load = Load(budget, windows, steps, batch_size, stream, shard)
    resources = Resources(gpus or processes or 1, rate, 0 if gpus else peak_resident() or 0)
    phases = [phase.as_dict() for phase in planned(sizes, load, resources)]
    for phase in phases:
        phase["fits"] = None if limit is None else phase["peak_bytes"] <= limit
    if as_json:
        print_json({"parameters": sizes.parameters, "processes": resources.processes, "rate": rate, "phases": phases})
        return
    columns = [
        Column("name", "phase"),
        Column("time", "time"),
        Column("peak", "GB at most", ".1f"),
        Column("sent", "GB sent", ".1f"),
    ]
    rows: list[dict[str, Any]] = [
        {
            "name": phase["name"],
            "time": _time(phase["seconds"]),
            "peak": phase["peak_bytes"] / 1e9,
            "sent": phase["sent_bytes"] / 1e9,
        }
        for phase in phases
    ]
    what = f"{gpus} GPUs" if gpus else f"{resources.processes} processes of {threads} threads"
    source = "measured here" if measured else "given" if tflops is not None else "assumed; no GPU was measured"
    print(
        f"{sizes.parameters:,} parameters, {windows} calibration windows, on {what}, each with {rate / 1e12:.3g} "
        f"TFLOP/s ({source}); per process:"
    )
    print()
    print(text(columns, rows))
    if limit is None:
        return
    print()
    over = [phase["name"] for phase in phases if not phase["fits"]]
    if not over:
        print(f"fits into {memory} per process")
        return
    trained = phases[-1]["name"] if steps else None
    helpful = {"--stream": not stream and set(over) != {trained}, "--shard": not shard and trained in over}
    advice = [option for option, helps in helpful.items() if helps]
    print(f"does not fit into {memory} per process: {', '.join(over)}{'; try ' if advice else ''}{' or '.join(advice)}")


def _rate(threads: int, processes: int) -> float:
    """FLOPs per second of a large product in each of several processes on the processors of this machine."""
    import torch

    from mpochain.execution.measurement import trusted_machine
    from mpochain.planning import Setting

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        share = min(1.0, (os.cpu_count() or 1) / (threads * processes))
        return trusted_machine(Setting("float32")).gemm_rate * share
    finally:
        torch.set_num_threads(before)


def _bytes(memory: str) -> int:
    """A size such as 80GB in bytes.

    Raises:
        ArgumentError: it is none.
    """
    from mpochain.compression.budget import size_budget
    from mpochain.errors import ArgumentError

    size = size_budget(memory)
    if size is None or size.of_layers:
        raise ArgumentError(f"--memory must be a size such as 80GB or 64GiB, got {memory!r}")
    return size.bytes


def _time(seconds: float) -> str:
    """Seconds in the unit that suits them.

    Example:
        >>> _time(8), _time(600), _time(86400)
        ('8 s', '10 min', '24 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
