"""The texts of a recipe by what they hold, so that no model is judged by what it has seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mpochain.errors import RecipeError
from mpochain.workflows.recipe import Recipe

__all__ = ["digest", "require_unseen"]


def digest(file: Path) -> str:
    """The sha256 of a text.

    Raises:
        RecipeError: it cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(f"cannot read the text {file}: {error.strerror}") from error


def require_unseen(recipe: Recipe) -> None:
    """Refuse to evaluate on a text that the model is calibrated or healed on, whatever its copies are called.

    Raises:
        RecipeError: that is what the recipe asks for, or one of its texts cannot be read.
    """
    if recipe.evaluation is None:
        return
    judged = digest(recipe.evaluation.text)
    for what, section in (("calibrated", recipe.calibration), ("healed", recipe.healing)):
        if section is not None and digest(section.text) == judged:
            raise RecipeError(
                f"{recipe.evaluation.text} is what the model is {what} on, and would make it look better than it is; "
                "evaluate on another text"
            )
