"""Runs plans in torch, and measures them."""

from mpochain.execute.measurement import measure_machine
from mpochain.execute.program import Program, run_portable
from mpochain.execute.runner import ChainRunner
from mpochain.execute.tuning import tuned

__all__ = ["ChainRunner", "Program", "measure_machine", "run_portable", "tuned"]
