"""Types of recipe fields: counts, windows, budgets, paths and methods, checked before conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from mpochain.compression import Method, method_named
from mpochain.compression.budget import require_budget, speed_share
from mpochain.compression.methods.table import method_type
from mpochain.compression.selection import as_patterns
from mpochain.errors import RecipeError
from mpochain.validation import Validated

__all__ = [
    "Budget",
    "Count",
    "File",
    "MethodName",
    "Pattern",
    "RecipeSection",
    "Source",
    "SpeedShare",
    "Window",
    "seeded",
]


class RecipeSection(Validated):
    """Base class of a recipe's sections: frozen, without unknown fields."""

    error_type = RecipeError


def _budget(value: Any) -> Any:
    require_budget(value)  # its error is a ValueError, as pydantic asks
    return value


def _speed(value: Any) -> Any:
    speed_share(value)  # its error is a ValueError
    return value


def _path(value: object) -> object:
    # YAML reads `model: 7` as a number, but a path must be text.
    if not isinstance(value, str | Path):
        raise ValueError(f"give a path, got {value!r}")  # pydantic does not catch a TypeError
    _no_nul(str(value))
    return value


def _no_nul(value: str) -> str:
    # The functions of the system raise a ValueError in place of an OSError for it.
    if "\0" in value:
        raise ValueError(f"a path has no NUL character, got {value!r}")
    return value


def _pattern(value: str) -> str:
    as_patterns([value])  # its error is a ValueError
    return value


def _known(name: str) -> str:
    # A method from another package may require settings, so only its class is checked without them.
    (method_type if ":" in name else method_named)(name)  # the error is a ValueError
    return name


def seeded(method: Method, seed: int) -> Method:
    """Set the seed of a method that has such a setting, unless it is already set.

    Example:
        >>> seeded(method_named("kronecker", {"terms": 1}), 3)
        Kronecker(terms=1, seed=3)
    """
    if "seed" not in method.Settings.model_fields or "seed" in method.settings.model_fields_set:
        return method
    return method.with_settings(seed=seed)


Count = Annotated[int, Field(ge=1, lt=1 << 31, strict=True)]
Window = Annotated[int, Field(ge=2, lt=1 << 31, strict=True)]
# Typed Any because YAML reads `yes` as True, which pydantic would convert to the number 1.
Budget = Annotated[Any, BeforeValidator(_budget)]
SpeedShare = Annotated[Any, BeforeValidator(_speed)]
File = Annotated[Path, BeforeValidator(_path)]
# A folder, a file or a name on the hub.
Source = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]
MethodName = Annotated[str, AfterValidator(_known)]
Pattern = Annotated[str, AfterValidator(_pattern)]
