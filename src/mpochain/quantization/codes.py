"""A matrix in few bits: codes, the scales of their groups, and zero points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, DTypeError, NonFiniteError, ShapeError
from mpochain.quantization.scheme import Scheme
from mpochain.wording import kind_of

__all__ = ["Quantized", "by_column", "on_grid"]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix ``(rows, columns)`` whose entries are ``(code - zero) * scale``.

    Attributes:
        codes: uint8 ``(rows, columns)``, from 0 to ``2**bits - 1``.
        scales: float16 ``(rows, groups)``.
        zeros: uint8 ``(rows, groups)``, from 0 to ``2**bits - 1``; None if the scheme is symmetric, whose zero point is
            ``2**(bits - 1)``.
        scheme: bits, group and symmetry.

    Raises:
        DTypeError: another element type.
        ShapeError: shapes that do not fit each other and the scheme.
        ArgumentError: zero points of a symmetric scheme, or none of another one.

    Example:
        >>> matrix = Quantized(
        ...     torch.tensor([[0, 1, 3]], dtype=torch.uint8),
        ...     torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        ...     torch.tensor([[1, 0]], dtype=torch.uint8),
        ...     Scheme(2, group=2),
        ... )
        >>> matrix.dequantized()
        tensor([[-0.5000,  0.0000,  6.0000]])
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    scheme: Scheme

    def __post_init__(self) -> None:
        if self.scheme.symmetric != (self.zeros is None):
            expected = "must be None" if self.scheme.symmetric else "must be a tensor"
            raise ArgumentError(f"zeros of a matrix with {self.scheme} {expected}, got {kind_of(self.zeros)}")
        if self.codes.ndim != 2:
            raise ShapeError(f"codes must be a matrix (rows, columns), got shape {tuple(self.codes.shape)}")
        rows, columns = self.codes.shape
        groups = (rows, self.scheme.groups(columns))
        tensors = [("codes", self.codes, torch.uint8, (rows, columns)), ("scales", self.scales, torch.float16, groups)]
        if self.zeros is not None:
            tensors.append(("zeros", self.zeros, torch.uint8, groups))
        for name, tensor, dtype, shape in tensors:
            if tensor.dtype != dtype:
                raise DTypeError(f"{name} must be {dtype}, got {tensor.dtype}")
            if tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"{name} of a {rows}x{columns} matrix with {self.scheme} have shape {shape}, got "
                    f"{tuple(tensor.shape)}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes when stored, with packed codes."""
        return self.scheme.bytes(*self.shape)

    def require_valid(self, name: str = "the matrix") -> None:
        """Raise an error if a code or a zero point is out of range, or a scale is not finite.

        For tensors from a file; what this package rounds is valid.

        Raises:
            ArgumentError: a code or zero point above ``2**bits - 1``.
            NonFiniteError: a scale that is NaN or infinite.
        """
        for kind, tensor in (("code", self.codes), ("zero point", self.zeros)):
            if tensor is not None and tensor.numel() and int(tensor.max()) > self.scheme.largest_code:
                raise ArgumentError(
                    f"{name} has a {kind} of {int(tensor.max())}; with {self.scheme.bits} bits it is at most "
                    f"{self.scheme.largest_code}. Its file is damaged or for another number of bits"
                )
        if not bool(torch.isfinite(self.scales).all()):
            raise NonFiniteError(f"{name} has scales that are NaN or infinite. Its file is damaged")

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix ``(rows, columns)``, computed in float32 or wider and then rounded to ``dtype``."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        columns = self.codes.shape[1]
        values = self.codes.to(compute)
        if self.zeros is None:
            values -= self.scheme.middle_code
        else:
            values -= by_column(self.zeros.to(compute), self.scheme, columns)
        values *= by_column(self.scales.to(compute), self.scheme, columns)
        return values.to(dtype)


def by_column(numbers: Tensor, scheme: Scheme, columns: int) -> Tensor:
    """Numbers of groups ``(rows, groups)`` repeated for the columns of each group: ``(rows, columns)``.

    Example:
        >>> by_column(torch.tensor([[1, 2]]), Scheme(4, group=2), 3)
        tensor([[1, 1, 2]])
    """
    group = min(scheme.group, max(columns, 1))
    return numbers.repeat_interleave(group, dim=1)[:, :columns]


def on_grid(matrix: Tensor, scales: Tensor, zeros: Tensor, scheme: Scheme) -> Quantized:
    """A matrix with each entry at the nearest value of its group's grid.

    Args:
        matrix: float32 ``(rows, columns)``, finite.
        scales: float16 ``(rows, groups)``.
        zeros: uint8 ``(rows, groups)``, of a symmetric scheme too.
        scheme: bits, group and symmetry.

    Example:
        >>> one = torch.ones(1, 1)
        >>> on_grid(one * 0.7, one.half(), one.to(torch.uint8), Scheme(2)).dequantized()
        tensor([[1.]])
    """
    columns = matrix.shape[1]
    codes = (matrix / by_column(scales.to(matrix.dtype), scheme, columns)).round_()
    codes += by_column(zeros.to(matrix.dtype), scheme, columns)
    codes = codes.clamp_(0, scheme.largest_code).to(torch.uint8)
    return Quantized(codes, scales, None if scheme.symmetric else zeros, scheme)
