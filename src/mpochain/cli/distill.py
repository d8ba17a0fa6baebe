"""``mpochain distill``: staged compression, with distillation from the dense model after each stage."""

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
    Json,
    Overwrite,
    Seed,
    Shard,
    Window,
    command_line,
    evaluation_section,
    print_json,
    quiet_transformers,
)
from mpochain.errors import printable
from mpochain.system.progress import counting
from mpochain.system.sizes import megabytes
from mpochain.wording import counted

__all__ = ["distill"]

logger = logging.getLogger(__name__)


def distill(
    recipe: Annotated[
        str,
        typer.Argument(
            help="YAML file with stages, or a built-in recipe: tqcompressor-gpt2-small or kngpt2.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the compressed model.")],
    model: Annotated[str | None, typer.Option(help="Dense model to compress instead of the recipe's.")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on; must not be used for evaluation.")] = None,
    window: Window = None,
    windows: Annotated[
        int | None, typer.Option(help="Number of windows, spread evenly over the text; by default all.")
    ] = None,
    evaluate: EvaluationText = None,
    evaluate_windows: EvaluationWindows = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to cache the teacher's logits in; takes two bytes per position and vocabulary entry."
        ),
    ] = None,
    all_at_once: Annotated[
        bool, typer.Option("--at-once", help="Merge all stages into one with the sum of their steps, as a baseline.")
    ] = False,
    shard: Shard = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compress a model in stages, finetune it after each, and write it to a folder with distillation.json.

    After Ctrl-C or a kill, the same command resumes.
    """
    from mpochain.errors import RecipeError
    from mpochain.workflows import at_once, built_in_recipes, distill_by, read_recipe
    from mpochain.workflows.sizes import bytes_of_weights
    from mpochain.workflows.staging import RECORD

    recipes = built_in_recipes()
    if recipe not in recipes and not Path(recipe).exists():
        raise RecipeError(f"there is no recipe {recipe!r}; name a YAML file, or {' or '.join(recipes)}")
    settings = read_recipe(
        recipes.get(recipe, Path(recipe)),
        {
            "model": model,
            "dtype": dtype,
            "device": device,
            "seed": seed,
            "finetune": {"text": None if text is None else str(text), "windows": windows, "shard": shard},
            "evaluation": evaluation_section(evaluate, evaluate_windows),
        },
        window=window,
    )
    settings = at_once(settings) if all_at_once else settings
    with quiet_transformers(), counting() as counters:
        try:
            result = distill_by(
                settings,
                out,
                teacher_cache=teacher_cache,
                command=command_line(),
                overwrite=overwrite,
                counters=counters,
            )
        except KeyboardInterrupt:
            logger.info("interrupted; the state is saved in %s, and the same command resumes from it", out)
            raise typer.Exit(130) from None
    if as_json:
        print_json(json.loads((out / RECORD).read_text(encoding="utf-8")))
        return
    before, after = result.parameters
    print(f"{after:,} parameters of {before:,}")
    if result.dense is not None:
        print(f"perplexity of the dense model: {result.dense['perplexity']:.2f}")
    for stage in result.stages:
        line = (
            f"{stage['name']}: {counted(len(stage['layers']), 'layer')}, {counted(stage['training']['steps'], 'step')}"
        )
        if stage["after"] is not None:
            line += f"; perplexity {stage['before']['perplexity']:.2f}, then {stage['after']['perplexity']:.2f}"
        print(printable(line))
    print(f"file of weights: {megabytes(bytes_of_weights(out) or 0)}")
    print(out)
    print(out / RECORD)
