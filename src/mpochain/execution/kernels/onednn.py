"""oneDNN for large float32 products, which is faster than MKL on AMD processors with AVX-512.

PyTorch computes float32 products with MKL, which runs AVX2 code on all AMD processors, even on those with AVX-512.
oneDNN, which PyTorch uses for convolutions, selects code only by instruction set: on a Zen 5 its products are 2.2 times
as fast. A product of rows and a matrix is a convolution with a 1x1 kernel, and rows have the memory format "channels
last", so nothing is copied. This is no kernel of a plan but a context below all kernels, which affects other layers of
a model too.
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

__all__ = ["OneDNNProducts", "fast_products", "is_faster_than_mkl"]

# With at least these numbers of multiply-adds, rows and outputs, a convolution was faster for all shapes tested, in the
# forward and the backward pass; from four times the multiply-adds on it was twice as fast. See docs/decisions/0049.
_LEAST_MACS, _LEAST_ROWS, _LEAST_OUTPUTS = 1 << 24, 256, 8

# Names of F.linear's arguments.
_ARGUMENTS = ("input", "weight", "bias")

# Number of images into which the rows are split: with one thread PyTorch uses oneDNN only for batches of at least 16.
_IMAGES = 16


def fast_products() -> AbstractContextManager[object]:
    """A context in which oneDNN computes large float32 products, on processors where it is known to be faster.

    For work with many large products of equal shapes, such as training. The forward pass must run within the context;
    the backward pass may run inside or outside. Results differ from those without the context by rounding.

    Returns:
        ``OneDNNProducts`` on an AMD processor with AVX-512 on which PyTorch uses MKL, otherwise a null context.

    Example:
        >>> with fast_products():
        ...     y = F.linear(torch.ones(2, 3), torch.ones(4, 3))
    """
    return OneDNNProducts() if is_faster_than_mkl() else nullcontext()


def is_faster_than_mkl() -> bool:
    """Whether PyTorch computes float32 products with MKL on a processor for which oneDNN has faster code."""
    # Windows reports "AMD64" for Intel processors too.
    amd = processor().startswith("AMD ") or "AuthenticAMD" in processor()
    mkl_is_slow = torch.backends.mkl.is_available() and amd
    return mkl_is_slow and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


class OneDNNProducts(TorchFunctionMode):
    """A context in which ``F.linear`` of many float32 rows on a CPU runs as a convolution; other calls are unchanged.

    Products inside PyTorch's own functions, such as ``F.multi_head_attention_forward``, are not intercepted. PyTorch
    also computes products that are small, traced, checkpointed, under autocast, of another element type or layout, or
    of tensor subclasses, and all products if ``torch.backends.mkldnn`` is switched off.

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
        """Intercept a torch function; see ``torch.overrides.TorchFunctionMode``."""
        kwargs = kwargs or {}
        if func is F.linear:
            named = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            # Invalid arguments go to F.linear, which raises its own error.
            if len(named) == len(args) + len(kwargs) and {"input", "weight"} <= named.keys() <= set(_ARGUMENTS):
                x, weight, bias = named["input"], named["weight"], named.get("bias")
                if _pays(x, weight, bias):
                    return _linear(x, weight, bias)
        return func(*args, **kwargs)


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if the product should run as a convolution; False for arguments that ``F.linear`` would refuse."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not _is_plain(tensors) or _is_traced() or autocast_dtype(x) is not None:
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
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        for tensor in tensors
    )


def _is_traced() -> bool:
    """True if operations are recorded, or repeated later outside this context, where results would differ."""
    # Autograd runs the second forward pass of a checkpoint without any active mode.
    checkpointed = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return checkpointed or traced or torch._C._are_functorch_transforms_active()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x (..., in)`` times ``weight (out, in)`` as a convolution: ``(..., out)``."""
    out, in_ = weight.shape
    rows = x.numel() // in_
    images = _IMAGES if rows % _IMAGES == 0 else 1
    pixels = x.reshape(images, 1, rows // images, in_).permute(0, 3, 1, 2)
    rows_last = torch.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    # No view in autograd's sense, so that the result may be changed in place, like that of F.linear.
    return torch.ops.aten._unsafe_view(rows_last.contiguous(), (*x.shape[:-1], out))
