"""Command ``train``: training of one PicoGPT from random initialisation, saved as safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpochain.system.allocator import keep_freed_memory

__all__ = ["train"]


def train(
    out: Annotated[Path, typer.Option(help="File for the trained weights (.safetensors).")],
    max_bond: Annotated[int | None, typer.Option(help="Bond of the chains; by default dense.", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.", min=1)] = 2000,
    batch_size: Annotated[int, typer.Option(help="Sequences of 256 characters per step.", min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.", min=1e-9)] = 6e-3,
    core_rates: Annotated[bool, typer.Option(help="Scale the learning rates of cores by fan-in.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and batches.", min=0, max=2**63 - 1)] = 42,
    corpus: Annotated[Path | None, typer.Option(help="Text file; the README lists the defaults.")] = None,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations; 0 for the end only.", min=0)] = 0,
) -> None:
    """Train a PicoGPT and print validation loss and accuracy as JSON. After Ctrl-C, the same command continues."""
    from mpochain.errors import OutputError
    from mpochain.system.files import require_writable
    from mpochain.train import TrainConfig
    from studies import picogpt

    require_writable(out.parent)
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a folder; give the name of a file in it")
    keep_freed_memory()
    text = picogpt.load_corpus(corpus)
    print(f"corpus: {text}", file=sys.stderr)
    model = picogpt.build(max_bond, vocab_size=len(text.vocabulary), seed=seed)
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(100, steps // 6),
        seed=seed,
        evaluate_every=evaluate_every,
    )
    state = out.with_name(f"{out.name}.state")
    label = "dense" if max_bond is None else f"χ={max_bond}"
    try:
        result = picogpt.train_picogpt(model, text, config, core_rates=core_rates, checkpoint=state, label=label)
    except KeyboardInterrupt:
        print(f"interrupted; the state is saved in {state}, the same command continues from there", file=sys.stderr)
        raise typer.Exit(130) from None
    final = result.curve[-1].metrics
    training = {"config": config.model_dump(mode="json"), "core_rates": core_rates, "validation": final}
    picogpt.save_weights(out, model, text, training)
    state.unlink()
    record = {
        "corpus": text.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": final,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second),
        "weights": str(out),
    }
    print(json.dumps(record, indent=2, ensure_ascii=False))
