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

from mpochain.execution.autocast import autocast_dtype
from mpochain.system.processor import processor

__all__ = ["OneDNNProducts", "fast_products"]

# From so many multiply-adds, rows and outputs on a convolution was faster in every shape that was tried, forward and
# back, and from four times as many multiply-adds on twice as fast. See docs/decisions.md.
_LEAST_MACS, _LEAST_ROWS, _LEAST_OUTPUTS = 1 << 24, 256, 8

# The names of F.linear's own.
_ARGUMENTS = ("input", "weight", "bias")

# Images that the rows are dealt to: with one thread PyTorch asks oneDNN for batches of at least this many alone.
_IMAGES = 16


def fast_products() -> AbstractContextManager[object]:
    """A context in which large float32 products are made by the faster library, where that is known to be oneDNN.

    For work whose products are large and all alike, such as training: the forward pass within it decides, the backward
    pass may be within or not. Results differ from those outside by rounding.

    Returns:
        :class:`OneDNNProducts` on a processor of AMD's with AVX-512 for which PyTorch takes MKL, else a context that
        does nothing.

    Example:
        >>> with fast_products():
        ...     y = F.linear(torch.ones(2, 3), torch.ones(4, 3))
    """
    # "AMD64" alone is what Windows calls Intel's processors too.
    amd = processor().startswith("AMD ") or "AuthenticAMD" in processor()
    narrow = torch.backends.mkl.is_available() and amd
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return OneDNNProducts() if narrow and wide else nullcontext()


class OneDNNProducts(TorchFunctionMode):
    """Within it, ``F.linear`` of many float32 rows on a CPU is a convolution; all other calls are as ever.

    What PyTorch calls by itself does not pass through here, as the products within ``F.multi_head_attention_forward``.
    What is traced, under autocast, checkpointed, of another type or layout, on a subclass of tensors, or small stays
    with PyTorch's choice, and so does everything where ``torch.backends.mkldnn`` is switched off.

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
        kwargs = kwargs or {}
        if func is F.linear:
            given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            # What F.linear would refuse, it shall refuse in its own words.
            if len(given) == len(args) + len(kwargs) and {"input", "weight"} <= given.keys() <= set(_ARGUMENTS):
                x, weight, bias = given["input"], given["weight"], given.get("bias")
                if _pays(x, weight, bias):
                    return _linear(x, weight, bias)
        return func(*args, **kwargs)


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product of these is a convolution; not where ``F.linear`` would refuse them."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not _is_plain(tensors) or _is_watched() or autocast_dtype(x) is not None:
        return False
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    outputs, columns = weight.shape
    rows = x.numel() // max(columns, 1)
    if rows < _LEAST_ROWS or outputs < _LEAST_OUTPUTS or rows * weight.numel() < _LEAST_MACS:
        return False
    return rows % _IMAGES == 0 or torch.get_num_threads() > 1


def _is_plain(tensors: Iterable[Tensor]) -> bool:
    return bool(torch.backends.mkldnn.enabled) and all(
        type(each) in (Tensor, Parameter)
        and each.dtype == torch.float32
        and each.device.type == "cpu"
        and each.layout == torch.strided
        for each in tensors
    )


def _is_watched() -> bool:
    """Whether something looks at the operations that are called, or will call them again, and would find others."""
    # A checkpoint's second forward pass is made by autograd, where no mode is active.
    checkpointed = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return checkpointed or traced or torch._C._are_functorch_transforms_active()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x (..., in)`` times ``weight (out, in)`` as a convolution: ``(..., out)``."""
    out, in_ = weight.shape
    rows = x.numel() // in_
    images = _IMAGES if rows % _IMAGES == 0 else 1
    pixels = x.reshape(images, 1, rows // images, in_).permute(0, 3, 1, 2)
    made = torch.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    # Unlike a view's, what is made of this in place concerns nobody else, as with F.linear.
    return torch.ops.aten._unsafe_view(made.contiguous(), (*x.shape[:-1], out))
