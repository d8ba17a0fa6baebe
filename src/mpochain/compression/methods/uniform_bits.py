"""Base class of the methods that round every dense weight to the same number of bits."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np
from pydantic import Field

from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import errors_between
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.nn import QuantizedLinear
from mpochain.nn.embeddings import QuantizedEmbedding
from mpochain.quantization import BITS, Quantized, Scheme
from mpochain.quantization.grid import checked_matrix

__all__ = ["UniformBits", "coded_numbers", "dense_costs", "usable"]


class UniformBits(Method):
    """Dense weights in codes, with the same number of bits in every layer; a subclass defines :meth:`rounded`.

    Args:
        settings: see :class:`UniformBits.Settings`.
        values: fields of the settings.
    """

    class Settings(MethodSettings):
        """Settings of methods with the same number of bits in every layer."""

        bits: Literal[8, 4, 3, 2] | None = Field(
            None, description="bits of each code: 8, 4, 3 or 2; by default the most that the budget allows"
        )
        group: int = Field(128, ge=1, description="columns of a group, which has a scale of its own")
        symmetric: bool = Field(False, description="store no zero points, so that codes are symmetric around zero")

    settings: Settings
    same_choice = True
    tensors = 5

    def __init__(self, settings: Settings | None = None, /, **values: object) -> None:
        super().__init__(settings, **values)
        self.settled = self.settings.bits is not None

    @abstractmethod
    def rounded(self, target: Target, moments: Moments | None, scheme: Scheme) -> Quantized:
        """The weight in codes."""

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return min(*(scheme.bytes(*target.shape) for scheme in self._schemes()), target.bytes)

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`; errors are unknown before a layer is built."""
        schemes, reason = usable(target, self._schemes())

        def build(choice: int) -> Built:
            codes, dtype = self.rounded(target, moments, schemes[choice]), target.weight.dtype
            if target.is_embedding:
                return Built(QuantizedEmbedding.from_codes(codes, dtype=dtype))
            layer = QuantizedLinear.from_codes(codes, target.bias, dtype=dtype)
            return Built(layer, None if moments is None else errors_between(target.weight, moments, layer.weight))

        return Choices.of(target, dense_costs(target, schemes), None, build, reason=reason)

    def _schemes(self) -> list[Scheme]:
        chosen = self.settings
        bits = sorted(BITS) if chosen.bits is None else [chosen.bits]
        return [Scheme(number, chosen.group, chosen.symmetric) for number in bits]


def usable(target: Target, schemes: list[Scheme]) -> tuple[list[Scheme], str | None]:
    """The schemes that can hold a weight and are smaller than it, and why there are none; None if there are some."""
    out, in_ = target.shape
    if not target.weight.any():
        return [], "its weight is zero, and codes of zeros could never learn"
    smaller = [scheme for scheme in schemes if scheme.bytes(out, in_) < target.bytes]
    if not smaller:
        least = min(schemes, key=lambda scheme: scheme.bytes(out, in_))
        return [], f"in {least} it would take {least.bytes(out, in_):,} bytes, and the weight has {target.bytes:,}"
    try:
        for scheme in smaller:
            checked_matrix(target.weight, scheme, "its weight")
    except ArgumentError as error:
        return [], str(error)
    return smaller, None


def dense_costs(target: Target, schemes: list[Scheme]) -> Costs:
    """Costs of a dense weight in codes: all its multiply-adds, in fewer bytes."""
    return Costs(
        np.array([coded_numbers(scheme, *target.shape) for scheme in schemes], dtype=np.int64),
        np.array([scheme.bytes(*target.shape) for scheme in schemes], dtype=np.int64),
        np.full(len(schemes), target.macs, dtype=np.int64),
        target.element_size,
    )


def coded_numbers(scheme: Scheme, rows: int, columns: int) -> int:
    """How many numbers a matrix in codes stores: codes, scales and zero points."""
    return rows * columns + rows * scheme.groups(columns) * (1 if scheme.symmetric else 2)
