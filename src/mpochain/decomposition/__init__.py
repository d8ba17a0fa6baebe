"""Tensor-train decompositions of matrices into cores, one file per algorithm.

:data:`SPLITS` lists the algorithms of :func:`mpochain.decompose`. Each takes a matrix and a
:class:`~mpochain.ChainSpec` and returns a :class:`Decomposition`: the cores and the squared norm discarded at each
bond, whose sum is the exact squared error of the chain.
"""

from mpochain.decomposition.algorithms import SPLITS, Algorithm, automatic, decomposed_by
from mpochain.decomposition.block_train import Tiles, refitted_tiles, tiles_of
from mpochain.decomposition.calibrated import Calibration, calibrated
from mpochain.decomposition.contraction import contracted, direct_product, direct_sum, swept
from mpochain.decomposition.gram import gram
from mpochain.decomposition.grouping import correlated_groups
from mpochain.decomposition.interleave import deinterleave, interleave
from mpochain.decomposition.interpolative import (
    Interpolation,
    interpolative,
    interpolative_parameters,
    interpolative_rank,
)
from mpochain.decomposition.joint_pivots import joint_pivots
from mpochain.decomposition.permutation import PermutedKronecker, permuted_kronecker
from mpochain.decomposition.projector import WeightedLowRank
from mpochain.decomposition.randomized import randomized
from mpochain.decomposition.rounding import (
    left_unfolding,
    orthogonalize,
    orthogonalized,
    reduced,
    right_unfolding,
    round_cores,
)
from mpochain.decomposition.scaling import core_std, equalised, equalised_rows, held, multiplied, scaled_to_first
from mpochain.decomposition.splitting import KroneckerFactors, split_off, split_spec
from mpochain.decomposition.sweep import Decomposition, check_cutoff, retained_rank
from mpochain.decomposition.tt_svd import tt_svd
from mpochain.decomposition.weighted import damped_low_rank, projected_low_rank, weighted_low_rank
from mpochain.decomposition.zero import random_like, zero_cores

__all__ = [
    "SPLITS",
    "Algorithm",
    "Calibration",
    "Decomposition",
    "Interpolation",
    "KroneckerFactors",
    "PermutedKronecker",
    "Tiles",
    "WeightedLowRank",
    "automatic",
    "calibrated",
    "check_cutoff",
    "contracted",
    "core_std",
    "correlated_groups",
    "damped_low_rank",
    "decomposed_by",
    "deinterleave",
    "direct_product",
    "direct_sum",
    "equalised",
    "equalised_rows",
    "gram",
    "held",
    "interleave",
    "interpolative",
    "interpolative_parameters",
    "interpolative_rank",
    "joint_pivots",
    "left_unfolding",
    "multiplied",
    "orthogonalize",
    "orthogonalized",
    "permuted_kronecker",
    "projected_low_rank",
    "random_like",
    "randomized",
    "reduced",
    "refitted_tiles",
    "retained_rank",
    "right_unfolding",
    "round_cores",
    "scaled_to_first",
    "split_off",
    "split_spec",
    "swept",
    "tiles_of",
    "tt_svd",
    "weighted_low_rank",
    "zero_cores",
]
