"""Tensor-network (MPO / TT-matrix) layers for PyTorch: planned contractions, exact errors, honest costs.

Importing this package does not import torch; names that need it load it when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpochain import errors, shapes
from mpochain.chain import MPOChain
from mpochain.errors import MPOError
from mpochain.factorization import decompose, decompose_terms
from mpochain.planning import ContractionPlan, Setting, plan
from mpochain.spec import ChainSpec

if TYPE_CHECKING:
    from mpochain.checkpoint import load, save
    from mpochain.compression import compress
    from mpochain.execution import fast_products
    from mpochain.nn import (
        EntangledEmbedding,
        InterpolativeLinear,
        MPOEmbedding,
        MPOLinear,
        PermutedLinear,
        SumLinear,
        TokenTrainEmbedding,
    )
    from mpochain.surgery import set_execution, to_dense
    from mpochain.train import FinetuneConfig, finetune

__version__ = "0.1.0"

__all__ = [
    "ChainSpec",
    "ContractionPlan",
    "EntangledEmbedding",
    "FinetuneConfig",
    "InterpolativeLinear",
    "MPOChain",
    "MPOEmbedding",
    "MPOError",
    "MPOLinear",
    "PermutedLinear",
    "Setting",
    "SumLinear",
    "TokenTrainEmbedding",
    "compress",
    "decompose",
    "decompose_terms",
    "errors",
    "fast_products",
    "finetune",
    "load",
    "plan",
    "save",
    "set_execution",
    "shapes",
    "to_dense",
]

_NEEDS_TORCH = {
    "EntangledEmbedding": "mpochain.nn",
    "FinetuneConfig": "mpochain.train",
    "InterpolativeLinear": "mpochain.nn",
    "MPOEmbedding": "mpochain.nn",
    "MPOLinear": "mpochain.nn",
    "PermutedLinear": "mpochain.nn",
    "SumLinear": "mpochain.nn",
    "TokenTrainEmbedding": "mpochain.nn",
    "compress": "mpochain.compression",
    "fast_products": "mpochain.execution",
    "finetune": "mpochain.train",
    "load": "mpochain.checkpoint",
    "save": "mpochain.checkpoint",
    "set_execution": "mpochain.surgery",
    "to_dense": "mpochain.surgery",
}

# Subpackages that import torch, found here whatever was imported before.
_ROOMS = ("checkpoint", "compression", "execution", "language", "nn", "surgery", "train", "workflows")


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        value = getattr(import_module(_NEEDS_TORCH[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"mpochain.{name}")
    raise AttributeError(f"module 'mpochain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
