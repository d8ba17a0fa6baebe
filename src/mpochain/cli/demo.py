"""``mpochain demo``: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table and figures.")] = Path("mpochain-demo"),
    corpus: Annotated[Path | None, typer.Option(help="Text file; otherwise found as the README says.")] = None,
    bond: Annotated[list[int] | None, typer.Option(help="χ to decompose at; give it again for more.", min=1)] = None,
    tuning_steps: Annotated[int, typer.Option(help="Fine-tuning steps of each compressed model.", min=0)] = 60,
    dense_steps: Annotated[int, typer.Option(help="Steps of the dense model if none is shipped.", min=1)] = 300,
    batch_size: Annotated[int, typer.Option(help="Sequences of 256 characters per step.", min=1)] = 32,
) -> None:
    """Compress a trained character transformer at several bonds; print what each one costs and keeps."""
    from mpochain import picogpt
    from mpochain.picogpt.demo import demo as run
    from mpochain.system.files import require_writable

    require_writable(out)
    text = picogpt.load_corpus(corpus)
    print(f"corpus: {text}", file=sys.stderr)
    result = run(
        text,
        out,
        bonds=tuple(bond or (4, 8, 16, 32)),
        dense_steps=dense_steps,
        tuning_steps=tuning_steps,
        batch_size=batch_size,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(result.table())
    print(f"written to {out.resolve()} in {result.seconds:.0f} s: demo.json, demo.md and figures", file=sys.stderr)
