"""Runs plans in torch, and measures them; by which library large products are made."""

from mpochain.execute.measurement import measure_machine
from mpochain.execute.products import fast_products
from mpochain.execute.program import Program, run_portable
from mpochain.execute.runner import ChainRunner
from mpochain.execute.tuning import tuned

__all__ = ["ChainRunner", "Program", "fast_products", "measure_machine", "run_portable", "tuned"]
