"""Validated settings: pydantic models whose errors are one MPOError that lists every problem."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mpochain.errors import ArgumentError, MPOError

__all__ = ["Integer", "Number", "Validated", "did_you_mean", "listed", "parsed", "problems", "shortened"]

_Model = TypeVar("_Model", bound=BaseModel)

# Longest value that a message repeats, in characters.
_LONGEST = 80
# Most problems that a message lists.
_MOST = 20


class Validated(BaseModel):
    """Base class of settings: frozen, without unknown fields.

    Invalid values raise one error that lists every problem with its field. Fields that are again such settings are
    checked at the same time.

    Raises:
        ArgumentError: a value is out of range, a name is unknown, or two values contradict each other; or another
            :class:`mpochain.MPOError` that a subclass names.

    Example:
        >>> class Steps(Validated):
        ...     steps: Integer = 1
        >>> Steps(stpes=3)
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: Steps: stpes: there is no such field; did you mean 'steps'?
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Error for invalid values, also in settings within these.
    error_type: ClassVar[type[MPOError]] = ArgumentError

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise type(self)._error(error) from error

    # pydantic then validates nested settings itself and joins their errors, instead of calling this constructor.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            label = type(self).__name__
            raise ArgumentError(
                f"{label} cannot be changed, got a new value for {name!r}; create another {label}"
            ) from error

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate a mapping or an instance.

        Raises:
            MPOError: see the class.
        """
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise cls._error(error) from error

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate JSON text.

        Raises:
            MPOError: see the class.
        """
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise cls._error(error) from error

    @classmethod
    def _error(cls, error: ValidationError) -> MPOError:
        return cls.error_type(listed(cls.__name__, problems(error, cls)))


@lru_cache
def _adapter(model: type[_Model]) -> TypeAdapter[_Model]:
    return TypeAdapter(model)


def parsed(model: type[_Model], data: Any) -> _Model:
    """Validate data, leaving the error to the caller, who knows where the data came from.

    Raises:
        pydantic.ValidationError: the data are invalid; see :func:`problems`.
    """
    return _adapter(model).validate_python(data)


def listed(label: str, lines: Iterable[str]) -> str:
    """Join problems into one message: a single one on one line, several on a line each.

    Example:
        >>> print(listed("recipe.yaml", ["model is missing", "seed: expected a number"]))
        recipe.yaml: 2 problems
          model is missing
          seed: expected a number
        >>> listed("recipe.yaml", ["model is missing"])
        'recipe.yaml: model is missing'
    """
    lines = list(lines)
    if len(lines) == 1:
        return f"{label}: {lines[0]}"
    return "\n  ".join([f"{label}: {len(lines)} problems", *shortened(lines)])


def shortened(lines: list[str]) -> list[str]:
    """The first 20 of many problems, and how many there are more.

    Example:
        >>> shortened(["a"] * 30)[-1]
        'and 10 more'
    """
    return lines if len(lines) <= _MOST else [*lines[:_MOST], f"and {len(lines) - _MOST} more"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest known one, or else all.

    Example:
        >>> did_you_mean("budgt", ["model", "budget"]), did_you_mean("x", ["model", "budget"])
        ("; did you mean 'budget'?", '; there are budget and model')
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    if not names:
        return "; there are none"
    if len(names) == 1:
        return f"; there is only {names[0]}"
    return f"; there are {', '.join(names[:-1])} and {names[-1]}"


def problems(
    error: ValidationError,
    model: type[BaseModel],
    *,
    noun: str = "field",
    note: Callable[[tuple[int | str, ...]], str] = lambda _: "",
) -> list[str]:
    """One line for each invalid field: its name, what is wrong, and the value.

    Args:
        error: errors of pydantic.
        model: settings that were validated, to suggest names of fields.
        noun: what the fields are called.
        note: end of a line, from the place of its field.
    """
    places: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    owners = {}
    for detail in error.errors(include_url=False):
        place, owner = _place(model, detail)
        places.setdefault(place, []).append(detail)
        owners[place] = owner
    # A list without its invalid items may be too short, which is no problem of its own.
    consequences = [
        place
        for place, details in places.items()
        if details[0]["type"] == "too_short"
        and any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]
    # A field with a misspelt name is not missing.
    for place, details in places.items():
        owner = owners[place]
        if details[0]["type"] == "extra_forbidden" and owner is not None:
            meant = difflib.get_close_matches(str(place[-1]), sorted(owner.model_fields), n=1)
            field = (*place[:-1], *meant)
            if field in places and places[field][0]["type"] == "missing":
                consequences.append(field)
    return [
        _line(place, details, owners[place], noun) + note(place)
        for place, details in places.items()
        if place not in consequences
    ]


def _line(place: tuple[int | str, ...], details: list[ErrorDetails], owner: type[BaseModel] | None, noun: str) -> str:
    field = ".".join(map(str, place))
    first = details[0]
    if first["type"] == "extra_forbidden":
        return f"{field}: there is no such {noun}{did_you_mean(str(place[-1]), owner.model_fields if owner else ())}"
    if first["type"] == "missing":
        return f"{field} is missing"
    messages = [_message(detail) for detail in details]
    # The members of a union refuse a value one by one; each refusal names what it expects.
    begin = "Input should be "
    rest = [message.removeprefix(begin) for message in messages[1:]]
    message = ", or ".join([messages[0], *rest])
    if first["type"] not in ("value_error", "assertion_error"):
        message += f", got {_shown(first['input'])}"
    return f"{field}: {message}" if field else message


def _message(detail: ErrorDetails) -> str:
    if detail["type"] in ("tuple_type", "list_type"):
        return "Input should be a list, as in [a, b]"
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "Input should be fields with values, as in {name: value}"
    return detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _place(model: type[BaseModel], detail: ErrorDetails) -> tuple[tuple[int | str, ...], type[BaseModel] | None]:
    """Names of the fields down to an error, and the settings that hold the last one.

    pydantic also lists the members of unions, which are no fields.
    """
    place: list[int | str] = []
    models, owner = [model], None
    keys = False
    for number, part in enumerate(detail["loc"], 1):
        holder = next((one for one in models if part in one.model_fields), None)
        if holder is not None:
            annotation = holder.model_fields[str(part)].annotation
            owner, models, keys = holder, list(_models(annotation)), _holds_dict(annotation)
            place.append(part)
        elif isinstance(part, int) or keys:
            place.append(part)
        elif detail["type"] == "extra_forbidden" and number == len(detail["loc"]):
            owner = models[0] if models else None
            place.append(part)
    return tuple(place), owner


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings within an annotation, such as ``tuple[Stage, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _holds_dict(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return True
    return any(_holds_dict(argument) for argument in get_args(annotation))


def _no_truth(value: Any) -> Any:
    # pydantic would read True as 1, and so would `steps: yes` of a YAML file.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value}")
    return value


# Numbers as YAML and Python write them, but no True, NaN or infinity, and no integer that tensors cannot hold.
Integer = Annotated[int, BeforeValidator(_no_truth), Field(ge=-(1 << 63), lt=1 << 63)]
Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
