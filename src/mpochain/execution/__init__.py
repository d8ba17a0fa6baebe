"""Execution of contraction plans in torch: kernels, chain runner, autotuning, and oneDNN products."""

from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.kernels.onednn import fast_products
from mpochain.execution.measurement import measure_machine
from mpochain.execution.program import Program
from mpochain.execution.runner import ChainRunner
from mpochain.execution.trials import predicted_plans
from mpochain.execution.tuning import tuned

__all__ = [
    "KERNELS",
    "ChainRunner",
    "Kernel",
    "Program",
    "fast_products",
    "measure_machine",
    "predicted_plans",
    "tuned",
]
