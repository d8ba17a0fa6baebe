"""``mpochain finetune``: finetuning of a compressed model on text, from a dense teacher, or both."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import (
    Device,
    Dtype,
    EvaluationText,
    EvaluationWindows,
    FurtherTexts,
    Json,
    Overwrite,
    RecipeFile,
    Seed,
    Shard,
    Window,
    command_line,
    evaluation_section,
    print_json,
    quiet_transformers,
)
from mpochain.system.progress import counting
from mpochain.system.sizes import megabytes
from mpochain.wording import counted

__all__ = ["finetune"]

logger = logging.getLogger(__name__)


def finetune(
    model: Annotated[Path, typer.Argument(help="Folder of the compressed model.")],
    out: Annotated[Path, typer.Option(help="Folder for the finetuned model.")],
    recipe: RecipeFile = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on; must not be used for evaluation.")] = None,
    window: Window = None,
    windows: Annotated[
        int | None, typer.Option(help="Number of windows, spread evenly over the text; by default all.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Dense model to learn from; by default the recipe's model.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; by default 100.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step; by default 4.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-batches per batch, to save memory; by default 1.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of linear warm-up of the learning rate; by default 5.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; by default 2e-5.")] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Weight of the teacher in the loss; 1 with a teacher, 0 for the text only.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Softmax temperature of model and teacher; by default 1.")
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(help="Dtype of matrix products: bfloat16; by default bfloat16 for a model in it, else float32."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations in the backward pass, to save memory.")
    ] = None,
    shard: Shard = None,
    seed: Seed = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    also: FurtherTexts = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Finetune a compressed model and write it to a folder with finetune.json.

    After Ctrl-C or a kill, the same command resumes from the last checkpoint.
    """
    from mpochain.workflows import finetune_by, read_recipe
    from mpochain.workflows.finetuning import RECORD

    # With only a text there is no teacher, so distillation is 0. With --distillation, a missing teacher is an error.
    text_alone = recipe is None and teacher is None and text is not None and distillation is None
    settings = read_recipe(
        recipe,
        {
            # A recipe needs a model. Without a recipe and a teacher this one fills the field, and it is not read.
            "model": teacher or (str(model) if recipe is None else None),
            "dtype": dtype,
            "device": device,
            "finetune": {
                "text": None if text is None else str(text),
                "windows": windows,
                "teacher": teacher,
                "shard": shard,
                "training": {
                    "steps": steps,
                    "warmup_steps": warmup_steps,
                    "batch_size": batch_size,
                    "accumulate": accumulate,
                    "learning_rate": learning_rate,
                    "distillation": 0.0 if text_alone else distillation,
                    "temperature": temperature,
                    "autocast": autocast,
                    "gradient_checkpointing": gradient_checkpointing,
                    "seed": seed,
                },
            },
            "evaluation": evaluation_section(evaluate, evaluate_windows, also),
        },
        window=window,
    )
    with quiet_transformers(), counting() as counters:
        try:
            finetuned = finetune_by(
                settings, model, out, counters=counters, command=command_line(), overwrite=overwrite
            )
        except KeyboardInterrupt:
            logger.info("interrupted; the state is saved in %s, and the same command resumes from it", out)
            raise typer.Exit(130) from None
    if as_json:
        print_json(json.loads((out / RECORD).read_text(encoding="utf-8")))
        return
    result = finetuned.result
    print(
        f"{counted(result.steps, 'step')}, {result.tokens:,} tokens in {result.seconds:,.0f} s; "
        f"loss {result.losses[0]:.4f} at the first step, {result.losses[-1]:.4f} at the last"
    )
    if finetuned.before is not None and finetuned.after is not None:
        print(f"perplexity: {finetuned.before.perplexity:.2f} before, {finetuned.after.perplexity:.2f} after")
    elif finetuned.after is not None:
        print(f"perplexity: {finetuned.after.perplexity:.2f}")
    for name, (before, after) in finetuned.also.items():
        first = "" if before is None else f"{before.perplexity:.2f} before, "
        print(f"perplexity on {name}: {first}{after.perplexity:.2f} after")
    print(_sizes(out, finetuned.peak_bytes))
    print(out)
    print(out / RECORD)


def _sizes(out: Path, peak: int | None) -> str:
    """Size of the saved model and peak memory of the run, in MB."""
    from mpochain.workflows.sizes import bytes_of_weights

    memory = "" if peak is None else f"; peak memory {megabytes(peak)}"
    return f"file of weights: {megabytes(bytes_of_weights(out) or 0)}{memory}"
