"""What commands know for the model card: the command itself and the perplexities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpochain.checkpoint.card import origin_of, remember_origin
from mpochain.compression.history import history
from mpochain.language import Perplexity
from mpochain.workflows.compressed import Compressed
from mpochain.workflows.recipe import Recipe

__all__ = ["tell_of_compression", "tell_of_finetuning"]


def tell_of_compression(model: Any, result: Compressed, recipe: Recipe, command: str) -> None:
    """Replace what :func:`mpochain.compress` left for the card by what the command knows.

    Args:
        model: the compressed model.
        result: what is known so far.
        recipe: recipe of the command.
        command: command that reproduces the result; empty if there is none.
    """
    further = [
        *_command(command),
        *_perplexities(recipe, {"dense": result.before, "compressed": result.after}),
        *(_perplexity(name, {"dense": before, "compressed": after}) for name, (before, after) in result.also.items()),
    ]
    remember_origin(model, replace(origin_of(model), text=history(result.report, further)))


def tell_of_finetuning(
    model: Any,
    recipe: Recipe,
    command: str,
    before: Perplexity | None,
    after: Perplexity | None,
    also: Mapping[str, tuple[Perplexity | None, Perplexity]],
) -> None:
    """Add a training to what the card says of the compression before.

    Args:
        model: the trained model.
        recipe: recipe of the command.
        command: command that reproduces the result; empty if there is none.
        before: perplexity before the training; None if it was not measured.
        after: perplexity after it.
        also: both perplexities on each further text, by its file name.
    """
    further = [
        *_command(command),
        *_perplexities(recipe, {"before": before, "after": after}),
        *(_perplexity(name, {"before": first, "after": last}) for name, (first, last) in also.items()),
    ]
    origin = origin_of(model)
    remember_origin(model, replace(origin, text="\n\n".join([origin.text, "Finetuned afterwards.", *further]).strip()))


def _command(command: str) -> list[str]:
    return [f"```sh\n{command}\n```"] if command else []


def _perplexities(recipe: Recipe, measured: dict[str, Perplexity | None]) -> list[str]:
    if recipe.evaluation is None or not any(measured.values()):
        return []
    return [_perplexity(recipe.evaluation.text.name, measured)]


def _perplexity(text: str, measured: Mapping[str, Perplexity | None]) -> str:
    known = {name: value for name, value in measured.items() if value is not None}
    values = ", ".join(f"{value.perplexity:.4g} {name}" for name, value in known.items())
    first = next(iter(known.values()))
    return f"Perplexity on {text} ({first.tokens:,} tokens in windows of {first.window:,}): {values}."
