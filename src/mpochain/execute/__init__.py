"""Runs plans in torch."""

from mpochain.execute.runner import ChainRunner

__all__ = ["ChainRunner"]
