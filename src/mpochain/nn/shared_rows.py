"""Interpolative layers made to store the same rows, so that they compute their outputs in one order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpochain.arrays import asarray, to_numpy
from mpochain.decomposition import joint_pivots
from mpochain.linalg import qr, solve_triangular
from mpochain.nn.interpolative import InterpolativeLinear

__all__ = ["SharedRows", "shared_rows"]

# Rows are not shared if coefficients then exceed this, since results would lose as many digits. Rows whose triangle has
# diagonal entries of this ratio are taken for dependent.
_LARGEST_COEFFICIENT, _WORST_RATIO = 10.0, 1e6


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Factors of several layers for one order of outputs.

    Attributes:
        order: ``(out,)``; of each layer of rank ``r``, the rows ``order[:r]`` are to be stored.
        factors: rows and coefficients of each layer for this order.
    """

    order: Tensor
    factors: dict[InterpolativeLinear, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def store(self) -> None:
        """Change the layers in place; their outputs change by rounding only."""
        for layer, (rows, coefficients) in self.factors.items():
            layer.rows.get_parameter("weight").copy_(rows)
            layer.coefficients.get_parameter("weight").copy_(coefficients)
            layer.place.copy_(torch.argsort(self.order))


@torch.no_grad()
def shared_rows(layers: Iterable[nn.Module]) -> SharedRows | None:
    """Rows that several layers with equal numbers of outputs can store; computed in float64.

    Args:
        layers: those that are not interpolative, or whose factors were replaced, are left out.

    Returns:
        None for fewer than two layers, and where rows that suit one layer do not suit another.

    Example:
        >>> one, other = InterpolativeLinear(8, 12, 3), InterpolativeLinear(8, 12, 5)
        >>> x, before = torch.ones(8), one.weight
        >>> shared = shared_rows([one, other])
        >>> shared.store()
        >>> torch.equal(one.place, other.place), torch.allclose(one.weight, before, atol=1e-5)
        (True, True)
    """
    factors = {layer: pair for layer in layers if isinstance(layer, InterpolativeLinear) and (pair := layer.factors())}
    if len(factors) < 2:
        return None
    order = torch.tensor(joint_pivots([left for left, _ in factors.values()]), device="cpu")
    new = {}
    for layer, (left, rows) in factors.items():
        ordered = left.detach().double()[order.to(left.device)]
        first, others = ordered[: layer.rank], ordered[layer.rank :]
        coefficients = _solution(first, others)
        if coefficients is None:
            return None
        new[layer] = (first @ rows.detach().double()).to(rows.dtype), coefficients.to(rows.dtype)
    return SharedRows(order, new)


def _solution(first: Tensor, others: Tensor) -> Tensor | None:
    """Coefficients with which the first rows give the others; None if they do not, or only by large coefficients."""
    if not len(others):
        return others
    basis, triangle = qr(first.T)
    sizes = triangle.diagonal().abs()
    if not sizes.amin() > sizes.amax() / _WORST_RATIO:
        return None
    coefficients = asarray(solve_triangular(to_numpy(triangle), to_numpy(basis.T @ others.T)), first).T
    return coefficients if coefficients.abs().amax() <= _LARGEST_COEFFICIENT else None
