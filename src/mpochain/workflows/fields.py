"""Types of recipe fields: counts, windows, budgets, paths and methods, checked before conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mpochain.compression import Method, method_named
from mpochain.compression.budget import require_budget
from mpochain.compression.methods.table import method_type

__all__ = ["Budget", "Count", "File", "MethodName", "Strict", "Window", "seeded"]


class Strict(BaseModel):
    """Base class of a recipe's sections: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _budget(value: Any) -> Any:
    require_budget(value)  # its error is a ValueError, as pydantic asks
    return value


def _path(value: object) -> object:
    # YAML reads `model: 7` as a number, but a path must be text.
    if not isinstance(value, str | Path):
        raise ValueError("give a path")  # pydantic does not catch a TypeError
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


Count = Annotated[int, Field(ge=1, strict=True)]
Window = Annotated[int, Field(ge=2, strict=True)]
# Typed Any because YAML reads `yes` as True, which pydantic would convert to the number 1.
Budget = Annotated[Any, BeforeValidator(_budget)]
File = Annotated[Path, BeforeValidator(_path)]
MethodName = Annotated[str, AfterValidator(_known)]
