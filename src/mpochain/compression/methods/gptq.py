"""Rounding of dense weights to few bits with feedback of the error along the inputs (GPTQ)."""

from __future__ import annotations

from mpochain.compression.methods.uniform_bits import UniformBits
from mpochain.compression.statistics.loss_metric import inputs_of
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.target import Target
from mpochain.quantization import Quantized, Scheme, input_feedback, nearest

__all__ = ["Gptq"]


class Gptq(UniformBits):
    """Dense weights rounded column by column, each error compensated by later columns; the same bits in every layer.

    Source: GPTQ, arXiv 2210.17323. The budget picks the most bits that fit; with ``bits=`` there is no budget.

    Example:
        >>> import mpochain as mpo, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> report = mpo.compress(model, None, calibration=[torch.randn(500, 64)], method=Gptq(bits=3, group=32))
        >>> report.method, report.bits_per_weight
        ('gptq', 3.75)
    """

    name = "gptq"
    needs = "inputs"

    def needs_inputs(self, shape: tuple[int, int]) -> bool:  # noqa: ARG002  # of the protocol
        """See :class:`~mpochain.compression.methods.method.Method`."""
        return True

    def rounded(self, target: Target, moments: Moments | None, scheme: Scheme) -> Quantized:
        """The weight in codes."""
        if moments is None:  # without data all inputs count the same, and there is nothing to compensate
            return nearest(target.weight, scheme, name=target.name)
        return input_feedback(target.weight, scheme, inputs_of(target.weight, moments), name=target.name)
