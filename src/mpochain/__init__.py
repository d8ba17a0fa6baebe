"""Tensor-network (MPO / TT-matrix) layers for PyTorch, and compression of models by them.

Importing this package does not import torch. Names and subpackages that need torch are loaded on first use, whatever
was imported before. Once transformers is imported, before or after, it reads and writes folders of compressed models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpochain import errors, shapes
from mpochain.chain import MPOChain
from mpochain.errors import MPOError
from mpochain.factorization import decompose, decompose_terms
from mpochain.integrations import connect
from mpochain.planning import ContractionPlan, Setting, plan
from mpochain.spec import ChainSpec

if TYPE_CHECKING:
    from mpochain import (  # noqa: F401  # attributes of the package for type checkers
        architectures,
        checkpoint,
        cli,
        compression,
        decomposition,
        execution,
        integrations,
        language,
        linalg,
        nn,
        planning,
        quantization,
        report,
        surgery,
        system,
        train,
        units,
        workflows,
    )
    from mpochain.checkpoint import load, save
    from mpochain.compression import compress, cut, score
    from mpochain.execution import fast_products
    from mpochain.integrations.export import export
    from mpochain.nn import (
        EntangledEmbedding,
        InterpolativeLinear,
        MPOEmbedding,
        MPOLinear,
        PermutedLinear,
        QuantizedEmbedding,
        QuantizedLinear,
        QuantizedParts,
        SumLinear,
        TokenTrainEmbedding,
    )
    from mpochain.surgery import as_linears, set_execution, to_dense
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
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedParts",
    "Setting",
    "SumLinear",
    "TokenTrainEmbedding",
    "as_linears",
    "compress",
    "cut",
    "decompose",
    "decompose_terms",
    "errors",
    "export",
    "fast_products",
    "finetune",
    "load",
    "plan",
    "save",
    "score",
    "set_execution",
    "shapes",
    "to_dense",
]

# Where each name that needs torch is defined.
_LAZY_NAMES = {
    "EntangledEmbedding": "nn",
    "FinetuneConfig": "train",
    "InterpolativeLinear": "nn",
    "MPOEmbedding": "nn",
    "MPOLinear": "nn",
    "PermutedLinear": "nn",
    "QuantizedEmbedding": "nn",
    "QuantizedLinear": "nn",
    "QuantizedParts": "nn",
    "SumLinear": "nn",
    "TokenTrainEmbedding": "nn",
    "as_linears": "surgery",
    "compress": "compression",
    "cut": "compression",
    "export": "integrations.export",
    "fast_products": "execution",
    "finetune": "train",
    "load": "checkpoint",
    "save": "checkpoint",
    "score": "compression",
    "set_execution": "surgery",
    "to_dense": "surgery",
}

_SUBPACKAGES = (
    "architectures",
    "checkpoint",
    "cli",
    "compression",
    "decomposition",
    "distributed",
    "execution",
    "integrations",
    "language",
    "linalg",
    "nn",
    "planning",
    "quantization",
    "report",
    "surgery",
    "system",
    "train",
    "units",
    "workflows",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        value = getattr(import_module(f"mpochain.{_LAZY_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return import_module(f"mpochain.{name}")
    raise AttributeError(f"module 'mpochain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


connect()
