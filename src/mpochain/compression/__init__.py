"""Whole models: which layers, what they see, how a budget is shared among them, and what became of them."""

from mpochain.compression.allocation import Curve, allocate
from mpochain.compression.methods import METHODS, Entangled, Kronecker, TokenTrain
from mpochain.compression.pipeline import compress
from mpochain.compression.records import CompressionReport, LayerRecord
from mpochain.compression.statistics.moments import Moments, collect_moments
from mpochain.compression.targets import select

__all__ = [
    "METHODS",
    "CompressionReport",
    "Curve",
    "Entangled",
    "Kronecker",
    "LayerRecord",
    "Moments",
    "TokenTrain",
    "allocate",
    "collect_moments",
    "compress",
    "select",
]
