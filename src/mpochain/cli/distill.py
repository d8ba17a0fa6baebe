"""``mpochain distill``: a model made smaller in stages, learning from the dense one after each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpochain.cli.options import Dtype, Json, Seed, Window, command_line, print_json, quiet_transformers
from mpochain.system.progress import counting, say

__all__ = ["distill"]


def distill(
    recipe: Annotated[
        str,
        typer.Argument(
            help="YAML file with stages, or tqcompressor-gpt2-small or kngpt2, which come with the library."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the smaller model.")],
    model: Annotated[str | None, typer.Option(help="Dense model, in place of the recipe's.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text to learn from; never one to evaluate on.")] = None,
    window: Window = None,
    windows: Annotated[int | None, typer.Option(help="How many of the text, evenly spread; all if not given.")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="Text to measure perplexity on, around each stage.")] = None,
    evaluate_windows: Annotated[int | None, typer.Option(help="Windows of it; all if not given.")] = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the teacher's logits in: two bytes for each word at each position."),
    ] = None,
    all_at_once: Annotated[
        bool, typer.Option("--at-once", help="One stage of as many steps as all together, to compare with.")
    ] = False,
    dtype: Dtype = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Make a model smaller in stages and let it learn after each; write it and distillation.json. Can be resumed."""
    from mpochain.errors import RecipeError
    from mpochain.workflows import at_once, built_in_recipes, distill_by, read_recipe
    from mpochain.workflows.staging import RECORD

    known = built_in_recipes()
    if recipe not in known and not Path(recipe).exists():
        raise RecipeError(f"there is no recipe {recipe!r}; name a YAML file, or {' or '.join(known)}")
    wanted = read_recipe(
        known.get(recipe, Path(recipe)),
        {
            "model": model,
            "dtype": dtype,
            "seed": seed,
            "healing": {"text": None if text is None else str(text), "windows": windows},
            "evaluation": {"text": None if evaluate is None else str(evaluate), "windows": evaluate_windows},
        },
        window=window,
    )
    wanted = at_once(wanted) if all_at_once else wanted
    with quiet_transformers(), counting() as counter:
        try:
            outcome = distill_by(
                wanted, out, teacher_cache=teacher_cache, command=command_line(), log=say, counter=counter
            )
        except KeyboardInterrupt:
            say(f"interrupted; the state is kept in {out}, the same command goes on from there")
            raise typer.Exit(130) from None
    if as_json:
        print_json(json.loads((out / RECORD).read_text(encoding="utf-8")))
        return
    before, after = outcome.parameters
    print(f"{after:,} parameters of {before:,}")
    if outcome.dense is not None:
        print(f"perplexity of the dense model: {outcome.dense['perplexity']:.2f}")
    for stage in outcome.stages:
        changes = (
            ""
            if stage["after"] is None
            else (f"; perplexity {stage['before']['perplexity']:.2f}, then {stage['after']['perplexity']:.2f}")
        )
        print(f"{stage['name']}: {len(stage['layers'])} layers, {stage['training']['steps']} steps{changes}")
    print(out)
    print(out / RECORD)
