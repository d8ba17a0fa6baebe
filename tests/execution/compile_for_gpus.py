"""Compiles the kernels in Triton for NVIDIA GPUs, which needs none, and prints what each program needs of the chip.

Run as a script. The kernels are compiled with the arguments with which the library launches them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mpochain.execution.kernels import fused, low_rank, triton_functions

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int32: "i32"}
RANKS = {torch.bfloat16: 200, torch.float32: 100}
# Two and three sites of 4096 features; cores a, b and c, as in fused.Sizes.
SWEEPS = {
    "two sites": fused.Sizes((64, 1, 64), (64, 1, 64), (16, 16), 2, False),
    "three sites": fused.Sizes((16, 16, 16), (16, 16, 16), (4, 8), 3, False),
}


class Launches:
    """Stands for a kernel, and records its launches."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            self.launches.append((self.kernel, named))

        return launch


def launches_of(call):
    """The launches of a call, none of which runs."""
    launches, kept = [], {}
    for name in triton_functions.__all__:
        kept[name] = getattr(triton_functions, name)
        setattr(triton_functions, name, Launches(kept[name], launches))
    try:
        call()
    finally:
        for name, kernel in kept.items():
            setattr(triton_functions, name, kernel)
    return launches


def compiled(kernel, named, architecture):
    """Bytes of shared memory, registers of a thread, and bytes that do not fit into them."""
    signature, constants, attributes = {}, {}, {}
    for number, name in enumerate(kernel.arg_names):
        value = named[name]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
            attributes[(number,)] = [["tt.divisibility", 16]]
        elif value is None or kernel.params[number].is_constexpr or value == 1:
            signature[name] = "constexpr"
            constants[(number,)] = value
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(number,)] = [["tt.divisibility", 16]]
    options = {name: named[name] for name in ("num_warps", "num_stages") if name in named}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    program = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [program, "--dump-resource-usage", file.name]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = dict(word.split(":") for word in shown.split() if word.startswith(("REG:", "STACK:")))
    return {"shared": binary.metadata.shared, "registers": int(needed["REG"]), "spilled": int(needed["STACK"])}


def calls():
    """The calls by name; their tensors are empty, with the shapes of full ones."""
    low_rank.multiprocessors = lambda _: 132
    for dtype, rank in RANKS.items():
        weight, left = torch.empty(rank, 1024, dtype=dtype), torch.empty(1024 - rank, rank, dtype=dtype)
        place, bias = torch.empty(1024, dtype=torch.int32), torch.empty(1024, dtype=dtype)
        for rows in (8, 8192):
            x, right = torch.empty(rows, 1024, dtype=dtype), (weight.t(), None)
            name = f"low rank, {rows} rows, {NAMES[dtype]}"
            yield (
                name,
                lambda x=x, a=right, b=(left, place), r=rank, d=bias: low_rank._products(
                    x, a, b, r, 1024, d, keeps=False
                ),
            )
            yield (
                f"{name}, backward",
                lambda x=x, a=right, b=(left, place), r=rank: low_rank._products(x, b, a, r, 1024, None, keeps=True),
            )
        for label, sizes in SWEEPS.items():
            (ab, bc), x = sizes.bonds, torch.empty(256, 4096, dtype=dtype)
            sides = [(sizes.outs[0] * ab, sizes.ins[0]), (sizes.outs[2], sizes.ins[2] * bc)]
            if sizes.sites == 3:
                sides.insert(1, (bc * sizes.outs[1], sizes.ins[1] * ab))
            cores = [torch.empty(side, dtype=dtype) for side in sides]
            yield f"{label}, {NAMES[dtype]}", lambda x=x, cores=cores, sizes=sizes: fused._launch(x, cores, sizes)


if __name__ == "__main__":
    architectures = [int(number) for number in sys.argv[1:]]
    for name, call in calls():
        for kernel, named in launches_of(call):
            for architecture in architectures:
                needed = compiled(kernel, named, architecture)
                label = {"call": name, "kernel": kernel.__name__, "architecture": architecture}
                print(json.dumps(label | needed), flush=True)
