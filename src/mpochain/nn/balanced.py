"""Layers of low rank as two balanced factors, which round well with tools that know no metric."""

from __future__ import annotations

import torch

from mpochain.linalg import qr, svd
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.linear_chain import LinearChain
from mpochain.shapes import low_rank

__all__ = ["balanced_linears"]


@torch.no_grad()
def balanced_linears(layer: CompressedLayer) -> LinearChain | None:
    """Two ``torch.nn.Linear`` with the function of a layer of low rank, both with the roots of its singular values.

    Computed in float64, from QR decompositions of both factors and an SVD of ``(r, r)``, so that nothing dense is made.

    Args:
        layer: see :meth:`mpochain.nn.CompressedLayer.factors`.

    Returns:
        The new layer, which shares no memory; None for a layer that is not a plain product of two.

    Example:
        >>> from mpochain.nn import InterpolativeLinear
        >>> layer = InterpolativeLinear(6, 4, rank=2)
        >>> new = balanced_linears(layer)
        >>> right, left = (module.weight for module in reversed(new.terms[0]))
        >>> torch.allclose(left @ right, layer.weight, atol=1e-6)
        True
        >>> torch.allclose(left.T @ left, right @ right.T, atol=1e-6)
        True
    """
    factors = layer.factors()
    if factors is None:
        return None
    left, right = (factor.double() for factor in factors)
    (q_left, r_left), (q_right, r_right) = qr(left), qr(right.T)
    U, S, Vh = svd(r_left @ r_right.T)
    root = S.sqrt()
    spec = low_rank(len(left), right.shape[1], len(S))
    trained = any(parameter.requires_grad for name, parameter in layer.named_parameters() if name != "bias")
    cores = [
        numbers.to(factors[0].dtype).reshape(shape).requires_grad_(trained)
        for numbers, shape in zip(
            (q_left @ (U * root), (root[:, None] * Vh) @ q_right.T), spec.core_shapes, strict=True
        )
    ]
    return LinearChain.from_cores([(spec, cores)], layer.bias).train(layer.training)
