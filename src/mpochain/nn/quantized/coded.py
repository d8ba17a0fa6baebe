"""Tensors of a layer that are held in codes: names, shapes and element types of what is stored for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.nn.quantized.dequantization import dequantised, scaled, straight_through
from mpochain.quantization import Quantized, Scheme, packed, unpacked

__all__ = ["CodedTensor"]


@dataclass(frozen=True)
class CodedTensor:
    """A tensor that a module holds as packed codes, scales and zero points.

    For a tensor ``weight`` these are the buffer ``weight_packed``, the parameter ``weight_scale`` and, unless the
    scheme is symmetric, the buffer ``weight_zero_point``. The names are those of compressed-tensors.

    A tensor of more than two axes is a matrix whose rows are the first half of the axes: a core ``(r_left, out, in,
    r_right)`` has rows ``(r_left out)`` and columns ``(in r_right)``.

    Attributes:
        path: path of the tensor within the layer, such as ``weight`` or ``parts.0.rows.weight``.
        shape: shape of the tensor.
        scheme: bits, group and symmetry.

    Raises:
        ShapeError: fewer than two axes.

    Example:
        >>> coded = CodedTensor("core", (1, 4, 6, 8), Scheme(4, group=16))
        >>> coded.rows, coded.columns
        (4, 48)
    """

    path: str
    shape: tuple[int, ...]
    scheme: Scheme

    def __post_init__(self) -> None:
        if len(self.shape) < 2:
            raise ShapeError(f"{self.path} has shape {self.shape}; a tensor in codes needs at least two axes")

    @property
    def rows(self) -> int:
        """Rows of the matrix that is quantised."""
        return math.prod(self.shape[: len(self.shape) // 2])

    @property
    def columns(self) -> int:
        """Columns of the matrix that is quantised; groups divide these."""
        return math.prod(self.shape[len(self.shape) // 2 :])

    @property
    def types(self) -> dict[str, torch.dtype]:
        """Element types of the stored tensors, by path."""
        types = {f"{self.path}_packed": torch.int32, f"{self.path}_scale": torch.float16}
        return types if self.scheme.symmetric else {**types, f"{self.path}_zero_point": torch.uint8}

    def owner(self, layer: nn.Module) -> nn.Module:
        """The module that holds the stored tensors."""
        return layer.get_submodule(self.path.rpartition(".")[0])

    @property
    def name(self) -> str:
        """Name of the tensor in its module."""
        return self.path.rpartition(".")[2]

    @property
    def latent(self) -> str:
        """Name in its module of the numbers whose rounded values are the codes, while they are trained."""
        return f"{self.name}_latent"

    def register(self, owner: nn.Module, device: torch.device | str | None = None) -> None:
        """Give a module the stored tensors, without values."""
        words = torch.empty(self.rows, self.scheme.words(self.columns), dtype=torch.int32, device=device)
        groups = self.rows, self.scheme.groups(self.columns)
        zeros = None if self.scheme.symmetric else torch.empty(groups, dtype=torch.uint8, device=device)
        owner.register_buffer(f"{self.name}_packed", words)
        scales = torch.empty(groups, dtype=torch.float16, device=device)
        owner.register_parameter(f"{self.name}_scale", nn.Parameter(scales))
        owner.register_buffer(f"{self.name}_zero_point", zeros)

    def stored(self, owner: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """Packed codes, scales and zero points."""
        words: Tensor = getattr(owner, f"{self.name}_packed")
        scales: Tensor = getattr(owner, f"{self.name}_scale")
        zeros: Tensor | None = getattr(owner, f"{self.name}_zero_point")
        return words, scales, zeros

    def assign(self, owner: nn.Module, quantized: Quantized) -> None:
        """Copy a quantised matrix into the stored tensors.

        Raises:
            ShapeError: another shape.
            ArgumentError: another scheme.
        """
        if quantized.shape != (self.rows, self.columns):
            raise ShapeError(
                f"{self.path} of shape {self.shape} is quantised as {(self.rows, self.columns)}, got codes of shape "
                f"{quantized.shape}"
            )
        if quantized.scheme != self.scheme:
            raise ArgumentError(f"{self.path} is held in {self.scheme}, got codes in {quantized.scheme}")
        words, scales, zeros = self.stored(owner)
        with torch.no_grad():
            words.copy_(packed(quantized.codes, self.scheme.bits))
            scales.copy_(quantized.scales)
            if zeros is not None and quantized.zeros is not None:
                zeros.copy_(quantized.zeros)

    def quantized(self, owner: nn.Module) -> Quantized:
        """A copy of codes, scales and zero points."""
        words, scales, zeros = (None if value is None else value.detach().clone() for value in self.stored(owner))
        assert words is not None
        assert scales is not None
        codes = unpacked(words, self.scheme.bits, self.columns)
        return Quantized(codes, scales.to(torch.float16), zeros, self.scheme)

    def dequantised(self, owner: nn.Module, dtype: torch.dtype) -> Tensor:
        """The tensor, differentiable with respect to the scales, and to latent codes while there are some."""
        matrix = self.dequantised_rows(owner, dtype, slice(None))
        return matrix if len(self.shape) == 2 else matrix.view(self.shape)

    def dequantised_rows(self, owner: nn.Module, dtype: torch.dtype, rows: slice) -> Tensor:
        """Rows of the matrix that is quantised."""
        words, scales, zeros = (None if value is None else value[rows] for value in self.stored(owner))
        assert words is not None
        assert scales is not None
        latent = owner._parameters.get(self.latent)
        if latent is None:
            return dequantised(words, scales, zeros, self.scheme, self.columns, dtype)
        return scaled(straight_through(latent[rows], self.scheme), scales, zeros, self.scheme, self.columns, dtype)

    def require_valid(self, owner: nn.Module, name: str) -> None:
        """Raise an error for stored values that no quantised matrix has; nothing is checked on the meta device.

        Args:
            owner: the module that holds them.
            name: path of the tensor in errors.

        Raises:
            ArgumentError: a zero point above the largest code, or bits after the last code that are not zero.
            NonFiniteError: a scale that is NaN or infinite.
        """
        words, scales, zeros = self.stored(owner)
        if words.device.type == "meta" or not words.numel():
            return
        if not bool(scales.isfinite().all()):
            raise NonFiniteError(f"{name}_scale holds NaN or infinite scales; the file is damaged")
        if zeros is not None and int(zeros.max()) > self.scheme.largest_code:
            raise ArgumentError(
                f"{name}_zero_point holds {int(zeros.max())}; a {self.scheme.bits}-bit zero point is at most "
                f"{self.scheme.largest_code}"
            )
        used = self.columns * self.scheme.bits - 32 * (words.shape[1] - 1)
        if used < 32 and bool(((words[:, -1].to(torch.int64) & 0xFFFFFFFF) >> used).any()):
            raise ArgumentError(
                f"{name}_packed has bits after the last of {self.columns} codes in a row; expected zeros there"
            )
