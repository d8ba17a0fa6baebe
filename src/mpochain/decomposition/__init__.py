"""Matrices to cores, one file per algorithm.

Every algorithm takes a matrix and a :class:`~mpochain.ChainSpec` and returns a :class:`Decomposition`: the cores and
the squared weight each bond discarded, which is the exact squared error of the whole.
"""

from mpochain.decomposition.automatic import automatic
from mpochain.decomposition.calibrated import Calibration, calibrated
from mpochain.decomposition.gram import gram
from mpochain.decomposition.grouping import correlated_groups
from mpochain.decomposition.interleave import deinterleave, interleave
from mpochain.decomposition.interpolative import (
    Interpolation,
    interpolative,
    interpolative_parameters,
    interpolative_rank,
)
from mpochain.decomposition.permutation import PermutedKronecker, permuted_kronecker
from mpochain.decomposition.randomized import randomized
from mpochain.decomposition.rounding import fold_left, fold_right, orthogonalize, round_cores
from mpochain.decomposition.splitting import Split, split_off, split_spec
from mpochain.decomposition.sweep import Decomposition, check_cutoff, retained_rank
from mpochain.decomposition.tt_svd import tt_svd
from mpochain.decomposition.weighted import WeightedLowRank, projected_low_rank, weighted_low_rank

__all__ = [
    "Calibration",
    "Decomposition",
    "Interpolation",
    "PermutedKronecker",
    "Split",
    "WeightedLowRank",
    "automatic",
    "calibrated",
    "check_cutoff",
    "correlated_groups",
    "deinterleave",
    "fold_left",
    "fold_right",
    "gram",
    "interleave",
    "interpolative",
    "interpolative_parameters",
    "interpolative_rank",
    "orthogonalize",
    "permuted_kronecker",
    "projected_low_rank",
    "randomized",
    "retained_rank",
    "round_cores",
    "split_off",
    "split_spec",
    "tt_svd",
    "weighted_low_rank",
]
