"""Linear layer whose weight is held in 8-, 4-, 3- or 2-bit codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mpochain.errors import ArgumentError, ShapeError
from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.packed import PackedMatrix, packed, product
from mpochain.execution.tracing import is_traced
from mpochain.nn.dense import dense_parameters
from mpochain.nn.entry import MatrixEntry
from mpochain.nn.initialization import uniform_bias_
from mpochain.nn.quantized.coded import CodedTensor
from mpochain.nn.quantized.int4 import Int4Weight
from mpochain.nn.quantized.layer import QuantizedLayer, SchemeEntry
from mpochain.quantization import Quantized, Scheme, nearest

__all__ = ["QuantizedEntry", "QuantizedLinear"]

# Elements of the weight that are dequantised at once: 2 MiB of float32. In tiles of a sixteenth, one row takes 40 %
# longer and 512 rows 50 %; larger ones gain nothing (docs/decisions/0061).
_TILE = 1 << 19
# Elements of a dequantised weight up to which it is kept for the backward pass: 256 KiB of float32.
_KEPT = 1 << 16


class QuantizedEntry(MatrixEntry, SchemeEntry):
    """Entry of a :class:`QuantizedLinear`."""

    kind: Literal["quantized"] = "quantized"
    bias: bool


class QuantizedLinear(QuantizedLayer):
    """``y = x W^T + b`` with ``W = (codes - zeros) * scales``: ``(..., in_features) -> (..., out_features)``.

    Codes of 8, 4, 3 or 2 bits are packed into 32-bit words; each group of columns of a row has a float16 scale and,
    unless the scheme is symmetric, a zero point. A call dequantises the weight in tiles of rows next to the product,
    so that the dense matrix is never in memory; with ``cache=True`` it is dequantised once, see
    :func:`mpochain.set_execution`. The scales are trained, the codes are not. Names and layout of codes and scales are
    those of the format "pack-quantized" of compressed-tensors, to which
    :func:`mpochain.checkpoint.export_compressed_tensors` writes a model.

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        scheme: bits, group and symmetry.
        bias: whether the layer has a bias.
        device: device of the tensors.
        dtype: element type in which the layer computes; scales are float16 regardless.

    Raises:
        ArgumentError: sizes that are not positive integers.

    Example:
        >>> layer = QuantizedLinear(64, 48, Scheme(4, group=32), bias=False)
        >>> layer.numbers().bytes, layer(torch.zeros(2, 5, 64)).shape  # 48 rows of 32 + 2 * 2 + 2 bytes
        (1824, torch.Size([2, 5, 48]))
    """

    kind = "quantized"
    Entry = QuantizedEntry
    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for label, size in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(f"{label} must be a positive integer, got {size!r}")
        if not isinstance(scheme, Scheme):
            raise ArgumentError(f"scheme must be a mpochain.quantization.Scheme, got {type(scheme).__name__}")
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self._register_prototype(device, dtype)
        self._coded = CodedTensor("weight", (out_features, in_features), scheme)
        self._coded.register(self, device)
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @classmethod
    def from_codes(cls, codes: Quantized, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Self:
        """A layer with copies of a quantised weight ``(out_features, in_features)`` and of a bias.

        Args:
            codes: the weight.
            bias: ``(out_features,)``; converted to ``dtype``.
            dtype: element type in which the layer computes; that of the bias, or torch's default, if not given.

        Raises:
            ShapeError: a bias whose shape is not ``(out_features,)``.

        Example:
            >>> W = torch.randn(6, 8)
            >>> layer = QuantizedLinear.from_codes(nearest(W, Scheme(8)))
            >>> bool((layer.weight - W).norm() < 0.01 * W.norm())
            True
        """
        out_features, in_features = codes.shape
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise ShapeError(f"the bias must have shape ({out_features},), got {tuple(bias.shape)}")
        if dtype is None:
            dtype = torch.get_default_dtype() if bias is None else bias.dtype
        layer = cls(in_features, out_features, codes.scheme, bias=bias is not None, device="meta", dtype=dtype)
        layer = layer.to_empty(device=codes.codes.device)
        layer._coded.assign(layer, codes)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype, copy=True))
        return layer

    @classmethod
    def from_linear(cls, linear: nn.Module, scheme: Scheme, name: str | None = None) -> Self:
        """Round the weight of a dense layer to the nearest codes; the bias is copied exactly.

        Args:
            linear: a ``torch.nn.Linear`` or Hugging Face ``Conv1D``; not changed, and shares no memory with the result.
            scheme: bits, group and symmetry.
            name: name of the layer in errors.

        Raises:
            DTypeError: a module that is no linear layer, or weights that are not floats.
            NonFiniteError: NaN or infinite weights.

        Example:
            >>> QuantizedLinear.from_linear(nn.Linear(128, 512), Scheme(4)).form()
            '4 bits in groups of 64'
        """
        weight, bias = dense_parameters(linear, name)
        codes = nearest(weight.detach(), scheme, name=f"the weight of {name or type(linear).__name__}")
        layer = cls.from_codes(codes, bias, weight.dtype)
        layer.weight_scale.requires_grad_(weight.requires_grad)
        if layer.bias is not None and bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
        return layer.replacing(linear).train(linear.training)

    @property
    def coded(self) -> tuple[CodedTensor, ...]:
        """See :attr:`QuantizedLayer.coded`."""
        return (self._coded,)

    def codes(self) -> Quantized:
        """A copy of the weight's codes, scales and zero points."""
        return self._coded.quantized(self)

    @property
    def weight(self) -> Tensor:
        """The dense ``W (out_features, in_features)``, differentiable; built at every access."""
        return self._coded.dequantised(self, self.dtype)

    def reset_parameters(self) -> None:
        """Draw a new weight as ``nn.Linear`` does, rounded to codes, and a new bias."""
        if self.device.type == "meta":
            return
        bound = 1 / math.sqrt(self.in_features)
        matrix = torch.empty(self.out_features, self.in_features, device=self.device).uniform_(-bound, bound)
        self._coded.assign(self, nearest(matrix, self.scheme))
        uniform_bias_(self.bias, self.in_features)

    def entry(self) -> QuantizedEntry:
        """The sizes, the scheme, and whether the layer has a bias."""
        return QuantizedEntry(
            out_features=self.out_features,
            in_features=self.in_features,
            **SchemeEntry.fields(self.scheme),
            bias=self.bias is not None,
        )

    @classmethod
    def from_entry(cls, entry: QuantizedEntry) -> Self:
        """See :meth:`mpochain.nn.CompressedLayer.from_entry`."""
        return cls(entry.in_features, entry.out_features, entry.scheme(), bias=entry.bias, device="meta")

    def form(self) -> str:
        """The scheme in words."""
        return str(self.scheme)

    def macs(self) -> int:
        """Multiply-adds per input row."""
        return self.in_features * self.out_features

    def compact(self, x: Tensor) -> Tensor:
        """The layer's output, in tiles of rows of the weight that the backward pass dequantises again."""
        if is_traced():
            return F.linear(x, self.weight, self.bias)
        tile = max(_TILE // self.in_features, 1)
        tiles = [slice(start, start + tile) for start in range(0, self.out_features, tile)]
        outputs: Any = self._outputs
        if self._records_gradients(x) and self.in_features * self.out_features > _KEPT:
            # Dequantising has no randomness, so there is no generator state to preserve.
            outputs = partial(checkpoint, outputs, use_reentrant=False, preserve_rng_state=False)
        parts = [outputs(x, rows) for rows in tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _dequantised(self) -> nn.Module:
        return self.to_linear()

    def _kept_from(self) -> Sequence[Tensor] | None:
        if self._modules:  # it is parametrised
            return super()._kept_from()
        # The generator over all submodules takes longer than a small product.
        return [value for name, value in self._parameters.items() if name != "bias" and value is not None]

    def _to_keep(self) -> Tensor | PackedMatrix | Int4Weight:
        """The dense weight, or its codes in the layout of a kernel that is faster than the dense product."""
        trained = self._coded.latent in self._parameters
        kept = None if trained else Int4Weight.of(self.codes(), self.dtype)
        return packed(self.weight) if kept is None else kept

    def _run_kept(self, x: Tensor, kept: Tensor | PackedMatrix | Int4Weight) -> Tensor:
        if not isinstance(kept, Int4Weight):
            return product(x, kept, self.bias)
        if (autocast_dtype(x) or x.dtype) != torch.bfloat16:
            return self.compact(x)
        y = kept.product(x.to(torch.bfloat16))
        return y if self.bias is None else y + self.bias

    def _outputs(self, x: Tensor, rows: slice) -> Tensor:
        """The output features of rows of the weight."""
        weight = self._coded.dequantised_rows(self, self.dtype, rows)
        return F.linear(x, weight, None if self.bias is None else self.bias[rows])

    def extra_repr(self) -> str:
        """Features, scheme and bias, for ``print(layer)``."""
        return f"{self.in_features} -> {self.out_features}, {self.scheme}, bias={self.bias is not None}"
