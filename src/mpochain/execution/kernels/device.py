"""Triton and the device that it runs on: whether both are there, and the constants that block sizes are chosen by.

Kernels in Triton run on NVIDIA GPUs, and on a CPU in Triton's interpreter, which computes the same values one block
after the other in NumPy. The interpreter is for tests: it runs only if the environment variable ``TRITON_INTERPRET`` is
``1`` when Python starts. Nothing here imports Triton.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

__all__ = ["INTERPRETED", "multiprocessors", "precision", "runs_triton"]

_INSTALLED = importlib.util.find_spec("triton") is not None

# Whether Triton's interpreter runs its kernels, on tensors of the CPU.
INTERPRETED = _INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(device_type: str) -> bool:
    """Whether kernels in Triton run on devices of this type, such as ``"cuda"``."""
    return INTERPRETED if device_type == "cpu" else _INSTALLED and device_type == "cuda" and not INTERPRETED


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU, each of which runs at least one block of a kernel at a time; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def precision(dtype: torch.dtype) -> str:
    """How Triton multiplies this type on tensor cores: float32 in three products of TF32, or one if the user allows it.

    Three products are about as precise as float32. Fused multiply-adds, ``"ieee"``, need more registers than there are
    at the block sizes used here.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
