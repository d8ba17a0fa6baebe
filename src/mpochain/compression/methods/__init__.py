"""Compression methods, one per file: the choices that each offers for a layer, and how they are built."""

from mpochain.compression.methods.auto import Auto
from mpochain.compression.methods.balanced import Balanced
from mpochain.compression.methods.block_train import BlockTrain
from mpochain.compression.methods.chains import Chains
from mpochain.compression.methods.entangled import Entangled
from mpochain.compression.methods.gptq import Gptq
from mpochain.compression.methods.interpolative import Interpolative
from mpochain.compression.methods.kronecker import Kronecker
from mpochain.compression.methods.low_rank import LowRank
from mpochain.compression.methods.method import Method, MethodSettings
from mpochain.compression.methods.rtn import Rtn
from mpochain.compression.methods.search import Search
from mpochain.compression.methods.table import METHODS, default_method, method_named, method_of
from mpochain.compression.methods.token_train import TokenTrain

__all__ = [
    "METHODS",
    "Auto",
    "Balanced",
    "BlockTrain",
    "Chains",
    "Entangled",
    "Gptq",
    "Interpolative",
    "Kronecker",
    "LowRank",
    "Method",
    "MethodSettings",
    "Rtn",
    "Search",
    "TokenTrain",
    "default_method",
    "method_named",
    "method_of",
]
