"""Digests of a recipe's texts, so that no model is evaluated on what it was calibrated or finetuned on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mpochain.errors import RecipeError
from mpochain.workflows.recipe import Recipe

__all__ = ["digest", "require_unseen"]


def digest(file: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(f"cannot read the text {file}: {error.strerror}") from error


def require_unseen(recipe: Recipe) -> None:
    """Refuse to evaluate on a text that the model is calibrated or finetuned on, whatever its copies are called.

    Raises:
        RecipeError: the evaluation text has the content of another one, or one of the texts cannot be read.
    """
    if recipe.evaluation is None:
        return
    evaluated = digest(recipe.evaluation.text)
    for use, section in (("calibrated", recipe.calibration), ("finetuned", recipe.finetune)):
        if section is not None and digest(section.text) == evaluated:
            raise RecipeError(
                f"{recipe.evaluation.text} is the text that the model is {use} on, which would make it look better "
                "than it is; evaluate on another text"
            )
