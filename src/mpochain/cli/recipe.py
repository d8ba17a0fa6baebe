"""``mpochain recipe``: example recipes, and the JSON schema of all recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from mpochain.cli.options import Json, print_json

__all__ = ["recipe"]


def recipe(
    example: Annotated[
        str | None, typer.Option(help="Print the example of a command: compress, finetune, compare or distill.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors that complete and check.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print an example recipe that works as it stands, or the JSON schema of recipes.

    Example: mpochain recipe --example compress > compress.yaml
    """
    from mpochain.errors import ArgumentError
    from mpochain.validation import did_you_mean
    from mpochain.workflows import Recipe, example_recipes

    examples = example_recipes()
    if schema == (example is not None):
        raise ArgumentError(f"give either --schema or --example NAME; there are {', '.join(examples)}")
    if schema:
        print_json(Recipe.model_json_schema())
    elif example not in examples:
        raise ArgumentError(f"there is no example {example!r}{did_you_mean(str(example), examples)}")
    elif as_json:
        print_json({"name": example, "recipe": examples[example].read_text(encoding="utf-8")})
    else:
        print(examples[example].read_text(encoding="utf-8"), end="")
