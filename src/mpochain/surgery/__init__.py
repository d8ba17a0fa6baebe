"""Operations on the compressed layers of a model: find, replace, tie, absorb permutations, densify, set execution."""

from mpochain.surgery.absorption import absorb_orders
from mpochain.surgery.densify import to_dense
from mpochain.surgery.experts import fuse_experts, separate_experts
from mpochain.surgery.finding import compressed_layers
from mpochain.surgery.half_precision import in_float32
from mpochain.surgery.linears import as_linears
from mpochain.surgery.rates import learning_rate_scales
from mpochain.surgery.running import set_execution
from mpochain.surgery.tying import tied_head

__all__ = [
    "absorb_orders",
    "as_linears",
    "compressed_layers",
    "fuse_experts",
    "in_float32",
    "learning_rate_scales",
    "separate_experts",
    "set_execution",
    "tied_head",
    "to_dense",
]
