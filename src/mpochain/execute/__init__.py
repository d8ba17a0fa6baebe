"""Runs plans in torch."""

from mpochain.execute.runner import ChainRunner, Program, run_portable

__all__ = ["ChainRunner", "Program", "run_portable"]
