"""Texts of a recipe: checks before any work, and hashes to refuse evaluation on calibration or finetuning text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpochain.errors import RecipeError
from mpochain.system.paths import file_problem, reason
from mpochain.workflows.recipe import Recipe

__all__ = ["counted_windows", "digest", "identified", "require_unseen", "seen_texts", "text_problem"]


def text_problem(file: Path) -> str | None:
    """Why a file cannot be read as text; None if it can be.

    Example:
        >>> text_problem(Path("nowhere.txt"))
        'cannot read the text nowhere.txt: there is no such file'
    """
    problem = file_problem(file)
    if problem is None:
        try:
            if not file.read_text(encoding="utf-8").strip():
                problem = "it has no text; give a file of UTF-8 text"
        except UnicodeDecodeError as error:
            problem = f"byte {error.start:,} is not UTF-8; give a file of UTF-8 text"
        except OSError as error:
            problem = reason(error)
    return None if problem is None else f"cannot read the text {file}: {problem}"


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        RecipeError: the file cannot be read.
    """
    problem = file_problem(file)
    if problem is not None:
        raise RecipeError(f"cannot read the text {file}: {problem}")
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(f"cannot read the text {file}: {reason(error)}") from error


def seen_texts(recipe: Recipe) -> list[str]:
    """One line for each use of an evaluation text that would make its perplexity too low, even of a copy.

    Raises:
        RecipeError: a text cannot be read.
    """
    if recipe.evaluation is None:
        return []
    used = {
        use: digest(section.text)
        for use, section in (("calibrated", recipe.calibration), ("finetuned", recipe.finetune))
        if section is not None
    }
    return [
        f"{text} is the text that the model is {use} on, so its perplexity would be too low; evaluate on another text"
        for text in recipe.evaluation.texts()
        for use, content in used.items()
        if digest(text) == content
    ]


def require_unseen(recipe: Recipe) -> None:
    """Refuse an evaluation text that is also used for calibration or finetuning, even as a copy.

    Raises:
        RecipeError: the evaluation text has the same content as another one, or a text cannot be read.
    """
    seen = seen_texts(recipe)
    if seen:
        raise RecipeError(seen[0])


def identified(text: Path) -> str:
    """Name and content of a text, for recorded settings.

    Raises:
        RecipeError: the file cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     text = Path(folder) / "a.txt"
        ...     _ = text.write_text("words")
        ...     identified(text)
        'a.txt, sha256 dba36bffa5cab0f9'
    """
    return f"{text.name}, sha256 {digest(text)[:16]}"


def counted_windows(section: Mapping[str, Any]) -> str:
    """The windows of a text that a recorded setting asks for.

    Example:
        >>> counted_windows({"windows": 24, "window": 512}), counted_windows({"windows": "at most 64", "window": 128})
        ('24 windows of 512', 'windows of 128, at most 64')
    """
    count, window = section["windows"], section["window"]
    return f"{count} windows of {window}" if isinstance(count, int) else f"windows of {window}, {count}"
