"""Runs plans in torch, and measures them; by which library large products are made."""

from mpochain.execution.kernels.onednn import fast_products
from mpochain.execution.measurement import measure_machine
from mpochain.execution.program import Program, run_portable
from mpochain.execution.runner import ChainRunner
from mpochain.execution.tuning import tuned

__all__ = ["ChainRunner", "Program", "fast_products", "measure_machine", "run_portable", "tuned"]
