"""Correction of a layer that writes the hidden states, for how far these have drifted from the dense model's.

Such a layer ``W`` reads ``x`` in the dense model and adds ``W x`` to hidden states ``h``; in the compressed model it
reads ``x'`` and adds to ``h'``. The matrix whose outputs make up for the drift so far is fitted to the target ``W x +
h - h'`` on the inputs ``x'``. With ``r = W x + h - (W x' + h')``, what is missing with the weight as it is, this is
``W + E[r x'^T] (E[x' x'^T] + ridge)^-1``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.square_sum import SquareSum, compact, unit_rows
from mpochain.linalg import solve

__all__ = ["Drift", "moments_after"]


class Drift:
    """Second moments of a layer's inputs in the compressed model, and of these with what is missing after the layer.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> drift = Drift()
        >>> drift.add(x, x @ torch.diag(torch.tensor([1.0, 0.0, -1.0])))
        >>> drift.change(ridge=1e-6).diagonal()
        tensor([ 1.0000,  ...0.0000, -1.0000], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._squares, self._products = SquareSum(), SquareSum()
        self._rows = 0
        self._means: tuple[Tensor, Tensor] | None = None

    def add(self, inputs: Tensor, missing: Tensor, kept: Tensor | None = None) -> None:
        """Add the rows of one batch.

        Args:
            inputs: ``x' (..., in)``.
            missing: ``r (..., out)``.
            kept: which rows count, bool, one entry per row; None for all.
        """
        x, r = (value.reshape(-1, value.shape[-1]) for value in (inputs, missing))
        if kept is not None:
            x, r = x[kept.to(x.device)], r[kept.to(r.device)]
        (x, power), (r, own_power) = unit_rows(x), unit_rows(r)
        self._squares.add_rows(x, power)
        self._products.add_product(r, x, power + own_power)
        self._rows += len(x)

    @property
    def inputs(self) -> Tensor:
        """``E[x' x'^T] (in, in)``."""
        return self._mean()[0]

    def change(self, ridge: float) -> Tensor | None:
        """``E[r x'^T] (E[x' x'^T] + ridge)^-1 (out, in)``, float64; None without any power in the inputs.

        Args:
            ridge: what is added to the diagonal, as a multiple of its mean.
        """
        squares, products = (value.double() for value in self._mean())
        mean = float(squares.diagonal().mean())
        if not mean > 0 or not (squares.isfinite().all() and products.isfinite().all()):
            return None
        # Divided by the mean, so that neither very large nor very small inputs leave the range of numbers.
        squares = squares / mean
        squares.diagonal().add_(ridge)
        result: Tensor = solve(squares, (products / mean).T).T
        return result

    def _mean(self) -> tuple[Tensor, Tensor]:
        if self._means is None:
            self._means = self._squares.mean(max(self._rows, 1)), self._products.mean(max(self._rows, 1))
        return self._means


def moments_after(weight: Tensor, moments: Moments, inputs: Tensor, held_out: Tensor) -> Moments:
    """Moments of a layer with a corrected weight, on its inputs in the compressed model.

    Those that were set aside become the ones on the held-out inputs, to which the weight was not fitted.

    Those of the gradients are those of the dense model. With respect to the inputs of a layer with more outputs than
    inputs, they follow from those with respect to the outputs, where these are known, and else stay as they are.

    Args:
        weight: the corrected weight ``(out, in)``.
        moments: moments of the layer in the dense model.
        inputs: ``E[x' x'^T] (in, in)``.
        held_out: the same of held-out batches.
    """
    weight64, inputs64 = weight.double(), inputs.double()
    out, in_ = weight.shape
    activations, gradients = inputs, moments.gradients
    if out <= in_:
        activations = compact(weight64 @ inputs64 @ weight64.T, 0)
    elif moments.output_gradients is not None:
        gradients = compact(weight64.T @ moments.output_gradients.double() @ weight64, 0)
    return replace(
        moments,
        activations=activations,
        gradients=gradients,
        input_power=float(inputs64.diagonal().mean()),
        inputs=None if moments.inputs is None else inputs,
        held_out=None if moments.held_out is None else moments_after(weight, moments.held_out, held_out, held_out),
    )
