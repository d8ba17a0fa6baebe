"""Types of recipe fields: counts, windows, budgets, paths and methods, checked before any conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mpochain.compression import Method, method_named
from mpochain.compression.budget import require_budget

__all__ = ["Budget", "Count", "File", "MethodName", "Strict", "Window", "seeded"]


class Strict(BaseModel):
    """Base of the sections of a recipe: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _budget(value: Any) -> Any:
    require_budget(value)  # its error is a ValueError, as pydantic asks
    return value


def _path(value: object) -> object:
    # YAML reads `model: 7` as a number, which is never meant as a path.
    if not isinstance(value, str | Path):
        raise ValueError("give a path")  # pydantic does not catch a TypeError
    return value


def _known(name: str) -> str:
    # A method of another package is imported with its settings, which it may not do without.
    if ":" not in name:
        method_named(name)  # its error is a ValueError
    return name


def seeded(method: Method, seed: int) -> Method:
    """The method with a seed, if it has such a setting and nobody set it.

    Example:
        >>> seeded(method_named("kronecker", {"terms": 1}), 3)
        Kronecker(terms=1, seed=3)
    """
    if "seed" not in method.Settings.model_fields or "seed" in method.settings.model_fields_set:
        return method
    return method.with_settings(seed=seed)


Count = Annotated[int, Field(ge=1, strict=True)]
Window = Annotated[int, Field(ge=2, strict=True)]
# Any type: YAML reads `yes` as True, which pydantic would turn into the number 1.
Budget = Annotated[Any, BeforeValidator(_budget)]
File = Annotated[Path, BeforeValidator(_path)]
MethodName = Annotated[str, AfterValidator(_known)]
