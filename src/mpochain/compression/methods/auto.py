"""Choice of form, rank and bits of every layer under one budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mpochain.compression.choices import Choices
from mpochain.compression.methods.few_bits import (
    dense_in_bits,
    interpolative_costs,
    interpolative_in_bits,
    interpolative_ranks,
)
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.methods.rounding_metric import RoundingMetric
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.quantization import Scheme

__all__ = ["Auto"]

# Measured increase of the loss over the predicted one, of rounding and of low rank. On data set aside the prediction
# needs none. On fitted data errors look too small, those of low rank more than those of rounding, since it follows the
# sample more; docs/decisions/0062 and 0065 have the measurements.
_FACTORS_OF_DATA_SET_ASIDE = (1.0, 1.0)
_FACTORS_OF_FITTED_DATA = (2.0, 3.0)

# Rows and coefficients are held in at least so many bits, unless fewer are all that is allowed: in equal bytes, a
# smaller rank in 3 bits loses about half as much as a larger one in 2.
_LEAST_BITS_OF_LOW_RANK = 3


class Auto(Method):
    """The dense weight in 8 to 2 bits, or low rank in few bits: form, rank and bits of each layer under one budget.

    All choices of all layers have errors in one unit, the predicted increase of the loss in nats per token, so that one
    Lagrangian picks among them. Dense weights are rounded with feedback of the error along inputs and outputs; the rows
    of low rank in interpolative form are rounded in the same way, and its coefficients refitted to them.

    Args:
        settings: see :class:`Auto.Settings`.
        values: fields of the settings.

    Example:
        >>> import mpochain as mpo, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> report = mpo.compress(model, "3.5 bits", calibration=[torch.randn(500, 64)])
        >>> report.method, report.bits_per_weight <= 3.5
        ('auto', True)
    """

    class Settings(MethodSettings):
        """Settings of :class:`Auto`."""

        forms: tuple[Literal["dense", "interpolative"], ...] = Field(
            ("dense", "interpolative"),
            min_length=1,
            description="forms to choose among: the dense weight in few bits, and low rank in few bits",
        )
        bits: tuple[Literal[8, 4, 3, 2], ...] = Field(
            (8, 4, 3, 2), min_length=1, description="bits of the codes to choose among"
        )
        groups: tuple[int, ...] = Field(
            (128,), min_length=1, description="columns of a group, which has a scale of its own, to choose among"
        )
        symmetric: bool = Field(False, description="store no zero points, so that codes are symmetric around zero")

        @field_validator("groups")
        @classmethod
        def _groups_are_sizes(cls, groups: tuple[int, ...]) -> tuple[int, ...]:
            if min(groups) < 1:
                raise ValueError(f"a group has at least one column, got {min(groups)}")
            return groups

    settings: Settings
    needs = "gradients"
    sets_aside = True
    tensors = 10

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return True

    def needs_outputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return True

    def smallest(self, target: Target) -> int:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        sizes = [target.bytes]
        if "dense" in self.settings.forms:
            sizes += [scheme.bytes(*target.shape) for scheme in self._schemes("dense")]
        if "interpolative" in self.settings.forms:
            rank = interpolative_ranks(target.shape)[:1]
            for scheme in self._schemes("interpolative"):
                sizes += interpolative_costs(target, rank, scheme).bytes.tolist()
        return min(sizes)

    def prepare(self, target: Target, moments: Moments | None) -> Choices:
        """See :class:`~mpochain.compression.methods.method.Method`."""
        metric, parts = RoundingMetric(target, moments, low_rank="interpolative" in self.settings.forms), []
        factors = _FACTORS_OF_FITTED_DATA if metric.judges_itself else _FACTORS_OF_DATA_SET_ASIDE
        for form in dict.fromkeys(self.settings.forms):
            schemes = self._schemes(form)
            if form == "dense":
                parts.append(dense_in_bits(target, moments, schemes, metric, factors[0]))
            else:
                parts.append(interpolative_in_bits(target, moments, schemes, metric, *factors))
        return Choices.joined(*parts)

    def _schemes(self, form: str) -> list[Scheme]:
        chosen = self.settings
        least = _LEAST_BITS_OF_LOW_RANK if form == "interpolative" else 2
        bits = [number for number in chosen.bits if number >= least] or chosen.bits
        return sorted({Scheme(number, group, chosen.symmetric) for number in bits for group in chosen.groups})
