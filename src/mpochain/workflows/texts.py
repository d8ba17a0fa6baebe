"""Hashes of a recipe's texts, to refuse evaluation on calibration or finetuning text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mpochain.errors import RecipeError
from mpochain.workflows.recipe import Recipe

__all__ = ["digest", "require_unseen"]


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        RecipeError: the file cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(f"cannot read the text {file}: {error.strerror}") from error


def require_unseen(recipe: Recipe) -> None:
    """Refuse an evaluation text that is also used for calibration or finetuning, even as a copy.

    Raises:
        RecipeError: the evaluation text has the same content as another one, or a text cannot be read.
    """
    if recipe.evaluation is None:
        return
    evaluated = digest(recipe.evaluation.text)
    for use, section in (("calibrated", recipe.calibration), ("finetuned", recipe.finetune)):
        if section is not None and digest(section.text) == evaluated:
            raise RecipeError(
                f"{recipe.evaluation.text} is the text that the model is {use} on, so its perplexity would be too low; "
                "evaluate on another text"
            )
