"""``mpochain finetune``: finetune a compressed model on text, by its dense teacher, or both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import (
    Dtype,
    EvaluationText,
    EvaluationWindows,
    Json,
    RecipeFile,
    Seed,
    Window,
    command_line,
    print_json,
    quiet_transformers,
)
from mpochain.system.progress import counting

__all__ = ["finetune"]

logger = logging.getLogger(__name__)


def finetune(
    model: Annotated[Path, typer.Argument(help="Folder of the compressed model.")],
    out: Annotated[Path, typer.Option(help="Folder for the finetuned model.")],
    recipe: RecipeFile = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to learn from; not one that the model is evaluated on.")
    ] = None,
    window: Window = None,
    windows: Annotated[
        int | None, typer.Option(help="Number of windows of the text, evenly spread; all if not given.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Dense model to learn from; the recipe's model if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; 100 if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows of a step; 4 if not given.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a batch is split into to save memory; 1 if not given.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps in which the learning rate rises to its peak; 5 if not given.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the learning rate; 2e-5 if not given.")] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Share of the teacher in the loss; 1 with a teacher, 0 for the text alone.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the softmax of model and teacher; 1 if not given.")
    ] = None,
    autocast: Annotated[
        str | None, typer.Option(help="Element type of matrix products: bfloat16; the model's own if not given.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Compute activations again in the backward pass to save memory.")
    ] = None,
    seed: Seed = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Finetune a compressed model; write it with finetune.json into a folder.

    After Ctrl-C or a kill the same command resumes from its last checkpoint.
    """
    from mpochain.workflows import finetune_by, read_recipe
    from mpochain.workflows.finetuning import RECORD
    from mpochain.workflows.json_file import write_json

    # Text and nothing else: there is no teacher to learn from. With --distillation a missing teacher is an error.
    text_alone = recipe is None and teacher is None and text is not None and distillation is None
    settings = read_recipe(
        recipe,
        {
            # Without a recipe and a teacher nothing else names a model, and none is read.
            "model": teacher or (str(model) if recipe is None else None),
            "dtype": dtype,
            "finetune": {
                "text": None if text is None else str(text),
                "windows": windows,
                "teacher": teacher,
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
            "evaluation": {
                "text": None if evaluate is None else str(evaluate),
                "windows": evaluate_windows,
            },
        },
        window=window,
    )
    with quiet_transformers(), counting() as counters:
        try:
            finetuned = finetune_by(settings, model, out, counters=counters)
        except KeyboardInterrupt:
            logger.info("interrupted; the state is kept in %s, and the same command resumes from it", out)
            raise typer.Exit(130) from None
    record = {
        "format": 1,
        "command": command_line(),
        "recipe": settings.model_dump(mode="json", exclude_none=True),
        **finetuned.as_dict(),
    }
    write_json(out / RECORD, record)
    if as_json:
        print_json(record)
        return
    result = finetuned.result
    print(
        f"{result.steps} steps, {result.tokens:,} tokens in {result.seconds:,.0f} s; "
        f"loss {result.losses[0]:.4f} at the first step, {result.losses[-1]:.4f} at the last"
    )
    if finetuned.before is not None and finetuned.after is not None:
        print(f"perplexity: {finetuned.before.perplexity:.2f} before, {finetuned.after.perplexity:.2f} after")
    elif finetuned.after is not None:
        print(f"perplexity: {finetuned.after.perplexity:.2f}")
    print(out)
    print(out / RECORD)
