"""Compression of models: methods, targets, calibration statistics, budgets and reports."""

from mpochain.compression.allocation import Curve, allocate
from mpochain.compression.any_size import cut, score
from mpochain.compression.at_budgets import compressed_to_each
from mpochain.compression.blocks.refined_blocks import RefinedBlock
from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.compression.checks import require_possible
from mpochain.compression.choices import Built, Choices
from mpochain.compression.costs import Costs
from mpochain.compression.methods import (
    METHODS,
    Auto,
    Balanced,
    BlockTrain,
    Chains,
    Entangled,
    Gptq,
    Interpolative,
    Kronecker,
    LowRank,
    Method,
    MethodSettings,
    Rtn,
    Search,
    TokenTrain,
    method_named,
)
from mpochain.compression.moments import collect_moments
from mpochain.compression.pipeline import compress
from mpochain.compression.records import CompressionReport, LayerRecord
from mpochain.compression.selection import select
from mpochain.compression.state import CompressionState, open_state
from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Errors
from mpochain.compression.sufficiency import HeldOut
from mpochain.compression.target import Target

__all__ = [
    "METHODS",
    "Auto",
    "Balanced",
    "BlockTrain",
    "Built",
    "Chains",
    "Choices",
    "CompressionReport",
    "CompressionState",
    "Costs",
    "Curve",
    "Entangled",
    "Errors",
    "Gptq",
    "HeldOut",
    "Interpolative",
    "Kronecker",
    "LayerRecord",
    "LowRank",
    "Method",
    "MethodSettings",
    "Moments",
    "RefinedBlock",
    "Refinement",
    "Rtn",
    "Search",
    "Target",
    "TokenTrain",
    "allocate",
    "collect_moments",
    "compress",
    "compressed_to_each",
    "cut",
    "method_named",
    "open_state",
    "require_possible",
    "score",
    "select",
]
