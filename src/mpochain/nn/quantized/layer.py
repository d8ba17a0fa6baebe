"""Base class of layers that hold tensors in codes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mpochain.errors import ArgumentError
from mpochain.nn.entry import Size
from mpochain.nn.layer import CompressedLayer
from mpochain.nn.numbers import Numbers
from mpochain.nn.quantized.coded import CodedTensor
from mpochain.quantization import Scheme
from mpochain.validation import Validated

__all__ = ["QuantizedLayer", "SchemeEntry"]

# Integers of the size of each float type, which conversions to another float type leave alone.
_BITS = {torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


class SchemeEntry(Validated):
    """A :class:`~mpochain.quantization.Scheme` within an entry."""

    bits: Literal[8, 4, 3, 2]
    group: Size
    symmetric: bool

    def scheme(self) -> Scheme:
        """The scheme."""
        return Scheme(self.bits, self.group, self.symmetric)

    @staticmethod
    def fields(scheme: Scheme) -> dict[str, Any]:
        """The fields of a scheme, for entries that have them among others."""
        return {"bits": scheme.bits, "group": scheme.group, "symmetric": scheme.symmetric}


class QuantizedLayer(CompressedLayer, ABC):
    """Base class of layers that hold tensors in codes, see :class:`mpochain.quantization.Quantized`.

    Codes and zero points are buffers. Scales are parameters, and the only way in which the tensors are trained. They
    are float16, whatever type the layer is converted to: ``layer.to(torch.bfloat16)`` changes the type in which the
    layer computes, :attr:`dtype`.

    Attributes:
        prototype: a tensor without elements, whose element type and device are those of the layer.
    """

    prototype: nn.Parameter

    @property
    @abstractmethod
    def coded(self) -> tuple[CodedTensor, ...]:
        """The tensors that are held in codes."""

    def _register_prototype(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Register the tensor that holds the layer's type.

        It is the first parameter, since transformers and others take a model's type from its first parameter.
        """
        self.prototype = nn.Parameter(torch.empty(0, device=device, dtype=dtype), requires_grad=False)

    def as_linears(self, *, dequantize: bool = False) -> nn.Module:
        """See :meth:`mpochain.nn.CompressedLayer.as_linears`."""
        if not dequantize:
            raise ArgumentError(
                f"{type(self).__name__} ({self.form()}) is held in codes already; give dequantize=True to have it "
                "dequantised, which multiplies its size"
            )
        return self._dequantised().train(self.training)

    def _dequantised(self) -> nn.Module:
        """A layer made of ``torch.nn.Linear`` that holds the dequantised tensors."""
        return super().as_linears(dequantize=True)

    def own_types(self) -> dict[str, torch.dtype]:
        """See :meth:`mpochain.nn.CompressedLayer.own_types`."""
        return {path: dtype for coded in self.coded for path, dtype in coded.types.items()}

    def require_valid(self, name: str) -> None:
        """See :meth:`mpochain.nn.CompressedLayer.require_valid`."""
        super().require_valid(name)
        for coded in self.coded:
            coded.require_valid(coded.owner(self), f"{name}.{coded.path}")

    def numbers(self) -> Numbers:
        """Parameters, bytes and multiply-adds; parameters are the codes, scales and zero points, and other numbers."""
        numbers = super().numbers()
        beyond_words = sum(coded.rows * (coded.columns - coded.scheme.words(coded.columns)) for coded in self.coded)
        return dataclasses.replace(numbers, parameters=numbers.parameters + beyond_words)

    def learning_rate_scales(self) -> dict[str, float]:
        """``2 / 2**bits`` for the scales: a step of a scale moves weights by as many steps as their codes are high."""
        return {f"{coded.path}_scale": 2.0 / (1 << coded.scheme.bits) for coded in self.coded}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the layer, or convert it to another type; codes and scales keep their type.

        Overrides ``nn.Module._apply``, which ``to``, ``half``, ``cuda``, ``to_empty`` and others call.
        """
        kept: dict[int, Tensor] = {}
        for coded in self.coded:
            owner = coded.owner(self)
            for tensors in (owner._parameters, owner._buffers):
                for kind in ("packed", "scale", "zero_point"):
                    tensor: Any = tensors.get(f"{coded.name}_{kind}")
                    if tensor is not None:
                        kept[id(tensor)] = tensor
                        if tensor.grad is not None:
                            kept[id(tensor.grad)] = tensor.grad

        def converted(tensor: Tensor) -> Tensor:
            return _of_its_type(fn, tensor) if id(tensor) in kept else fn(tensor)

        return super()._apply(converted, recurse)


def _of_its_type(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What a conversion returns for a tensor, but of the tensor's own type."""
    bits = tensor.view(_BITS[tensor.dtype]) if tensor.dtype in _BITS else tensor
    moved = fn(bits)
    # Module.type() converts integers too.
    return moved.view(tensor.dtype) if moved.dtype == bits.dtype else tensor.to(moved.device)
