"""Command ``demo``: compression of a trained character transformer at several bonds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table and figures.")] = Path("mpochain-demo"),
    corpus: Annotated[Path | None, typer.Option(help="Text file; the README lists the defaults.")] = None,
    bond: Annotated[list[int] | None, typer.Option(help="χ to decompose at; may be repeated.", min=1)] = None,
    finetune_steps: Annotated[
        int,
        typer.Option("--finetune-steps", "--tuning-steps", help="Finetuning steps for each compressed model.", min=0),
    ] = 60,
    dense_steps: Annotated[int, typer.Option(help="Training steps of the dense model if none is stored.", min=1)] = 300,
    batch_size: Annotated[int, typer.Option(help="Sequences of 256 characters per step.", min=1)] = 32,
) -> None:
    """Compress a trained character transformer at several bonds and print the cost and quality of each model."""
    from mpochain.system.files import require_writable
    from studies import picogpt
    from studies.picogpt.demo import demo as run

    require_writable(out)
    text = picogpt.load_corpus(corpus)
    print(f"corpus: {text}", file=sys.stderr)
    result = run(
        text,
        out,
        bonds=tuple(bond or (4, 8, 16, 32)),
        dense_steps=dense_steps,
        finetune_steps=finetune_steps,
        batch_size=batch_size,
    )
    print(result.table())
    print(f"written to {out.resolve()} in {result.seconds:.0f} s: demo.json, demo.md and figures", file=sys.stderr)
