"""Dequantisation of packed codes, differentiable with respect to their scales, also in recorded graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from mpochain.execution.tracing import is_for_other_programs, is_recorded, is_traced
from mpochain.quantization import Scheme, unpacked

__all__ = ["dequantised", "scaled", "straight_through"]


def dequantised(
    words: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme, columns: int, dtype: torch.dtype
) -> Tensor:
    """The matrix ``(code - zero) * scale``, ``(rows, columns)``, of packed codes.

    Computed in float32 or wider, in which it is exact for float16 scales, and then rounded to ``dtype``.

    Args:
        words: packed codes, int32 ``(rows, words)``.
        scales: ``(rows, groups)``, any float type.
        zeros: uint8 ``(rows, groups)``, or None for a symmetric scheme.
        scheme: bits, group and symmetry.
        columns: columns of the matrix.
        dtype: element type of the result.

    Example:
        >>> words, scales = torch.tensor([[0x4F0]], dtype=torch.int32), torch.tensor([[0.5]], dtype=torch.float16)
        >>> dequantised(words, scales, None, Scheme(4, symmetric=True), 3, torch.float32)
        tensor([[-4.0000,  3.5000, -2.0000]])
    """
    # torch.jit.trace cannot record a view of other elements, nor has ONNX one.
    shifted = is_recorded() or is_for_other_programs()
    codes = _shifted_out(words, scheme.bits, columns) if shifted else unpacked(words, scheme.bits, columns)
    return scaled(codes, scales, zeros, scheme, columns, dtype)


def straight_through(latent: Tensor, scheme: Scheme) -> Tensor:
    """Codes nearest to latent numbers, whose gradient is passed on to these as if they were not rounded.

    Latent numbers beyond the range of the codes get no gradient. Source: straight-through estimator, arXiv 1308.3432.

    Example:
        >>> latent = torch.tensor([0.7, 3.2, 9.0], requires_grad=True)
        >>> codes = straight_through(latent, Scheme(2))
        >>> codes.tolist(), torch.autograd.grad(codes.sum(), latent)[0].tolist()
        ([1.0, 3.0, 3.0], [1.0, 1.0, 0.0])
    """
    free = latent.detach()
    codes = free.round().clamp_(0, scheme.largest_code)
    inside = (free >= -0.5) & (free <= scheme.largest_code + 0.5)
    return codes + (latent - free) * inside


def scaled(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme, columns: int, dtype: torch.dtype
) -> Tensor:
    """The matrix ``(code - zero) * scale``, ``(rows, columns)``, of codes of any type; see :func:`dequantised`.

    Example:
        >>> scaled(torch.tensor([[3, 1]]), torch.tensor([[0.5]]), torch.tensor([[1]]), Scheme(2), 2, torch.float32)
        tensor([[1., 0.]])
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    values, scales = codes.to(compute), scales.to(compute)
    zeros = zeros if zeros is None else zeros.to(compute)
    group = min(scheme.group, columns)
    full = columns // group
    if columns % group == 0:
        return _scaled(values, scales, zeros, scheme, group).to(dtype)
    first, last = values.split([full * group, columns % group], dim=1)
    before, after = (None, None) if zeros is None else (zeros[:, :full], zeros[:, full:])
    parts = [
        _scaled(first, scales[:, :full], before, scheme, group),
        _scaled(last, scales[:, full:], after, scheme, columns % group),
    ]
    return torch.cat(parts, dim=1).to(dtype)


def _scaled(values: Tensor, scales: Tensor, zeros: Tensor | None, scheme: Scheme, group: int) -> Tensor:
    """Codes ``(rows, n group)`` of groups of one size, less the zero points and times the scales ``(rows, n)``."""
    grouped = values.unflatten(1, (-1, group))
    subtracted = scheme.middle_code if zeros is None else zeros[..., None]
    if is_traced() or (torch.is_grad_enabled() and (scales.requires_grad or values.requires_grad)):
        return ((grouped - subtracted) * scales[..., None]).flatten(1)
    return grouped.sub_(subtracted).mul_(scales[..., None]).flatten(1)


def _shifted_out(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes ``(rows, columns)`` of packed words, by shifts alone."""
    positions = torch.arange(columns, device=words.device) * bits
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    first = positions // 32
    # A code may begin in one word and end in the next.
    following = (first + 1).clamp(max=words.shape[1] - 1)
    # Functions, not the operators << and >>, which ONNX lacks.
    upper = torch.bitwise_left_shift(unsigned.index_select(1, following), 32)
    pairs = unsigned.index_select(1, first) | upper
    return torch.bitwise_right_shift(pairs, positions % 32) & ((1 << bits) - 1)
