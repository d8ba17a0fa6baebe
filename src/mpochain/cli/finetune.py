"""``mpochain finetune``: a compressed model healed on text, by its dense teacher, or both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Dtype, Json, RecipeFile, Seed, command_line, print_json, quiet_transformers
from mpochain.system.progress import counting, say

__all__ = ["finetune"]


def finetune(
    model: Annotated[Path, typer.Argument(help="Folder of the compressed model.")],
    out: Annotated[Path, typer.Option(help="Folder for the healed model.")],
    recipe: RecipeFile = None,
    text: Annotated[Path | None, typer.Option(help="Text to heal on; never one to evaluate on.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens of a window; 512 if not given.")] = None,
    windows: Annotated[int | None, typer.Option(help="How many, evenly spread; all if not given.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Dense model to become like; or the recipe's model.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; 100 if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step; 4 if not given.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts of a batch, to save memory; 1 if not given.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Until the rate has its peak; 5 if not given.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; 2e-5 if not given.")] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Share of the teacher in the loss; 1 with a teacher, 0 for the text alone.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of teacher and model; 1 if not given.")] = None,
    autocast: Annotated[str | None, typer.Option(help="bfloat16, for the products.")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option(help="Compute activations twice rather than keep them.")
    ] = None,
    seed: Seed = None,
    evaluate: Annotated[Path | None, typer.Option(help="Text to measure perplexity on, before and after.")] = None,
    evaluate_windows: Annotated[int | None, typer.Option(help="Windows of it; all if not given.")] = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Heal a compressed model; write it and healing.json. After Ctrl-C or a kill the same command goes on."""
    from mpochain.system.files import write_bytes
    from mpochain.workflows import heal_by, read_recipe

    # Unless something else was asked for: then the missing teacher is an error.
    alone = recipe is None and teacher is None and text is not None and distillation is None
    wanted = read_recipe(
        recipe,
        {
            # Without a recipe nothing else names a model, and without a teacher there is nothing to be like.
            "model": teacher or (str(model) if recipe is None else None),
            "dtype": dtype,
            "healing": {
                "text": None if text is None else str(text),
                "windows": windows,
                "teacher": teacher,
                "training": {
                    "steps": steps,
                    "warmup_steps": warmup_steps,
                    "batch_size": batch_size,
                    "accumulate": accumulate,
                    "learning_rate": learning_rate,
                    "distillation": 0.0 if alone else distillation,
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
    with quiet_transformers(), counting() as counter:
        try:
            healed = heal_by(wanted, model, out, log=say, counter=counter)
        except KeyboardInterrupt:
            say(f"interrupted; the state is kept in {out}, the same command goes on from there")
            raise typer.Exit(130) from None
    record = {
        "format": 1,
        "command": command_line(),
        "recipe": wanted.model_dump(mode="json", exclude_none=True),
        **healed.as_dict(),
    }
    write_bytes(out / "healing.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    if as_json:
        print_json(record)
        return
    result = healed.result
    print(
        f"{result.steps} steps, {result.tokens:,} tokens in {result.seconds:,.0f} s; "
        f"loss {result.losses[0]:.4f} at first, {result.losses[-1]:.4f} at last"
    )
    if healed.before is not None and healed.after is not None:
        print(f"perplexity: {healed.before.perplexity:.2f} before, {healed.after.perplexity:.2f} after")
    elif healed.after is not None:
        print(f"perplexity: {healed.after.perplexity:.2f}")
    print(out)
    print(out / "healing.json")
