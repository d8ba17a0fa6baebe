"""Products of bfloat16 inputs with a weight kept in 4-bit codes, by torch's kernel for CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mpochain.quantization import Quantized

__all__ = ["Int4Weight"]

# What the kernel takes.
_GROUPS, _ROWS = (32, 64, 128, 256), 16


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """A weight ``(out, in)`` in the layout of torch's kernel, half a byte an entry.

    On a processor with AVX-512 and without bfloat16 instructions a product takes 40 to 50 % of the time of the dense
    one in bfloat16, for 1 to 512 input rows, with the same error (docs/decisions/0061). Where the processor multiplies
    bfloat16 itself, the dense product of many rows is faster, so that the dense matrix is kept there.

    Attributes:
        packed: uint8 ``(out, in / 2)``, in the kernel's order.
        scales_and_offsets: bfloat16 ``(groups, out, 2)``: an entry is ``(code - 8) * scale + offset``.
        group: columns in a group.
    """

    packed: Tensor
    scales_and_offsets: Tensor
    group: int

    @classmethod
    def of(cls, codes: Quantized, dtype: torch.dtype) -> Self | None:
        """The weight for a layer that computes in ``dtype``; None where the kernel cannot run or is not faster.

        Example:
            >>> from mpochain.quantization import Scheme, nearest
            >>> Int4Weight.of(nearest(torch.randn(16, 64), Scheme(4)), torch.float32) is None
            True
        """
        scheme, (rows, columns) = codes.scheme, codes.shape
        fits = scheme.bits == 4 and scheme.group in _GROUPS and columns % scheme.group == 0 and rows % _ROWS == 0
        if not fits or dtype != torch.bfloat16 or not is_faster(codes.codes.device):
            return None
        scales = codes.scales.float()
        zeros = torch.full_like(scales, scheme.middle_code) if codes.zeros is None else codes.zeros.float()
        both = torch.stack([scales, (scheme.middle_code - zeros) * scales], dim=-1)
        packed = torch._convert_weight_to_int4pack_for_cpu(codes.codes.to(torch.int32), 1)
        return cls(packed, both.transpose(0, 1).contiguous().to(torch.bfloat16), scheme.group)

    def product(self, x: Tensor) -> Tensor:
        """``x W^T``, ``(..., in)`` to ``(..., out)``, for ``x`` in bfloat16."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = len(self.packed)
        if not len(rows):
            return x.new_empty(*x.shape[:-1], out)
        y = torch._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales_and_offsets)
        return y.view(*x.shape[:-1], out)


def is_faster(device: torch.device) -> bool:
    """Whether the kernel is faster than a dense product in bfloat16: on CPUs with AVX2 but no bfloat16 instructions."""
    return (
        device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and not torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )
