"""Large float32 products by oneDNN, where MKL leaves half of the processor unused.

PyTorch gives float32 products to MKL, which runs AVX2 code on AMD processors, those with AVX-512 too. oneDNN, which has
PyTorch's convolutions, looks at the instructions alone: on a Zen 5 its products are 2.2 times as fast. Rows times a
matrix are a convolution with a kernel of one pixel, and the rows lie as channels last do, so nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

from mpochain.execute.autocast import autocast_dtype
from mpochain.hardware import processor

__all__ = ["OneDNNProducts", "fast_products"]

# Multiply-adds and rows from which a convolution is faster in every shape that was tried, forward and back; it is twice
# as fast from four times as many on. See docs/decisions.md.
_LEAST_MACS, _LEAST_ROWS = 1 << 24, 256

# Images that the rows are dealt to: with one thread PyTorch asks oneDNN for batches of at least this many alone.
_IMAGES = 16


def fast_products() -> AbstractContextManager[object]:
    """A context in which large float32 products are made by the faster library, where that is known to be oneDNN.

    For work whose products are large and all alike, such as training. Results differ from those outside by rounding.

    Returns:
        :class:`OneDNNProducts` on a processor of AMD's with AVX-512 for which PyTorch takes MKL, else a context that
        does nothing.

    Example:
        >>> with fast_products():
        ...     y = F.linear(torch.ones(2, 3), torch.ones(4, 3))
    """
    narrow = torch.backends.mkl.is_available() and "AMD" in processor()
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return OneDNNProducts() if narrow and wide else nullcontext()


class OneDNNProducts(TorchFunctionMode):
    """Within it, ``F.linear`` of many float32 rows on a CPU is a convolution; all other calls are as ever.

    What is traced, under autocast, of another type, on a subclass of tensors or small stays with PyTorch's choice.

    Example:
        >>> x, weight = torch.randn(512, 256), torch.randn(256, 256)
        >>> with OneDNNProducts():
        ...     y = F.linear(x, weight)
        >>> torch.allclose(y, F.linear(x, weight), atol=1e-3)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch in place of its functions."""
        if func is F.linear and _pays(*args, **(kwargs or {})):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _pays(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:  # noqa: A002  (F.linear's names)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if any(type(each) not in (Tensor, Parameter) for each in tensors) or autocast_dtype(input) is not None:
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    # What F.linear would refuse, it shall refuse in its own words.
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in tensors):
        return False
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    columns = weight.shape[1]
    rows = input.numel() // max(columns, 1)
    if rows < _LEAST_ROWS or rows * weight.numel() < _LEAST_MACS:
        return False
    return rows % _IMAGES == 0 or torch.get_num_threads() > 1


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    out, in_ = weight.shape
    rows = input.numel() // in_
    images = _IMAGES if rows % _IMAGES == 0 else 1
    pixels = input.reshape(images, 1, rows // images, in_).permute(0, 3, 1, 2)
    made = torch.conv2d(pixels, weight[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(*input.shape[:-1], out)
