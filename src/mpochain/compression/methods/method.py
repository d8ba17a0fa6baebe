"""Base class of compression methods: settings, required statistics, and the choices for a layer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mpochain.compression.choices import Choices
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.system.extensions import errors_named
from mpochain.validation import Validated, listed, parsed, problems

__all__ = ["Method", "MethodSettings", "Needs"]

Needs = Literal["nothing", "inputs", "gradients"]


class MethodSettings(Validated):
    """Base class of a method's settings: frozen, without unknown fields.

    Give every field a description: the command line, recipes and the documentation show it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)


class Method(ABC):
    """Base class of compression methods. A subclass defines :meth:`prepare`, and ``Settings`` if it has any.

    A method defined outside this package works like the built-in ones: pass an instance to
    :func:`mpochain.compress`, or name its class as ``"package.module:ClassName"`` in a recipe or on the command line.

    Args:
        settings: an instance of ``Settings``; or give its fields as keywords.
        values: fields of ``Settings``.

    Attributes:
        Settings: pydantic model of the settings, usually a subclass of :class:`MethodSettings`.
        settings: validated settings of this instance.
        name: name in reports, by default the class name in snake case.
        needs: required statistics: ``"nothing"``; ``"inputs"``, the second moments of the inputs; or ``"gradients"``,
            these and the second moments of the gradients.
        uniform: whether every layer keeps the same share of its parameters, as in many published methods; otherwise
            the budget goes where it reduces the error most.
        same_choice: whether every layer takes the choice of the same index, such as the same number of bits; then the
            errors are never compared.
        sets_aside: whether one of four calibration batches is set aside, if they are a list of eight or more, so that
            layers are fitted to the others and their errors are of data that no fit has seen: ``moments.held_out``.
        linear: whether the method compresses linear layers.
        embeddings: whether the method compresses embeddings.
        tensors: the most tensors that one of its layers stores, bias included, which says how large the header of the
            saved file is.
        settled: whether the settings leave a single choice for each layer, the first. Such a method takes no budget,
            and its errors are never computed.

    Raises:
        ArgumentError: a setting is unknown, out of range or contradicts another; the message names the field.

    Example:
        >>> import numpy as np
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> from mpochain.compression import Built, Choices, Costs
        >>> class TruncatedSVD(Method):  # the best approximation of one rank
        ...     embeddings = True
        ...     settled = True
        ...     class Settings(MethodSettings):
        ...         rank: int
        ...     def prepare(self, target, moments):
        ...         (out, in_), rank = target.shape, self.settings.rank
        ...         def build(choice):
        ...             chain = mpo.decompose(target.weight, mpo.shapes.low_rank(out, in_, rank))
        ...             return Built(mpo.MPOLinear.from_chains(chain, target.bias))
        ...         size = rank * (out + in_)
        ...         return Choices.of(target, Costs.of(target, [size], [size]), None, build)
        >>> model = nn.Sequential(nn.Linear(16, 12))
        >>> report = mpo.compress(model, None, method=TruncatedSVD(rank=2))
        >>> report.method, report.parameters_after
        ('truncated_svd', 56)
    """

    Settings: ClassVar[type[BaseModel]] = MethodSettings

    settings: Any
    name: str = ""
    needs: Needs = "nothing"
    uniform: bool = False
    same_choice: bool = False
    sets_aside: bool = False
    linear: bool = True
    embeddings: bool = False
    tensors: int = 4
    settled: bool = False

    def __init__(self, settings: BaseModel | None = None, /, **values: Any) -> None:
        label = type(self).__name__
        if self.needs not in get_args(Needs):
            raise ArgumentError(f"{label}.needs is {self.needs!r}; expected one of {', '.join(get_args(Needs))}")
        if settings is not None and values:
            raise ArgumentError(f"{label} takes settings or their fields as keywords, got both; give one of them")
        if settings is not None and not isinstance(settings, self.Settings):
            raise ArgumentError(
                f"{label} takes settings of type {self.Settings.__qualname__}, got {type(settings).__name__}; give "
                "its fields as keywords"
            )
        with errors_named(f"the settings of {label}"):
            try:
                self.settings = parsed(self.Settings, values) if settings is None else settings
            except ValidationError as error:
                raise ArgumentError(listed(label, problems(error, self.Settings, noun="setting"))) from error
        if not self.name:
            self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", label).lower()

    def __repr__(self) -> str:
        fields = self.settings.model_dump(exclude_unset=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def with_settings(self, **changes: Any) -> Self:
        """A copy of the method with some settings changed.

        Raises:
            ArgumentError: see :class:`Method`.
        """
        kept = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        return type(self)(**{**kept, **changes})

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # for methods that do
        """Whether a layer ``(out, in)`` needs the moments of its inputs even if it has more inputs than outputs.

        By default only the moments of the smaller side are collected, see
        :class:`mpochain.compression.statistics.moments.Moments`.
        """
        return False

    def needs_outputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # for methods that do
        """Whether a layer ``(out, in)`` needs ``E[g g^T]`` of its outputs even if it has more outputs than inputs.

        Only methods with ``needs = "gradients"`` can; it arrives as ``moments.output_gradients``.
        """
        return False

    def check(self, targets: Mapping[str, Target], budget: float | str | None) -> None:  # noqa: B027  # may stay empty
        """Refuse layers or a budget that the method cannot handle, before any data is read.

        Args:
            targets: all layers to compress, by name.
            budget: see :func:`mpochain.compress`.

        Raises:
            MPOError: the method cannot compress a layer, which the message names, or meet the budget. The base class
                accepts everything.
        """

    def smallest(self, target: Target) -> int | None:  # noqa: ARG002  # for methods that do
        """Storage of a layer's smallest form in bytes, if it is known without data.

        With it a budget that is out of reach is refused before the data are read.

        Args:
            target: the dense layer.

        Returns:
            The number of bytes; None if it is unknown, as in the base class.
        """
        return None

    @abstractmethod
    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """Fit one layer and return its choices.

        Called once per layer, or twice if memory is short, so it must be deterministic. Expensive errors may be
        computed lazily; layers must be built only in ``Choices.build``.

        Args:
            target: the dense layer.
            moments: statistics of the layer; None for a method that needs none.
        """
