"""Shapes to contraction plans: what to fold, in which order to sweep, at what cost. No tensors, no torch."""

from mpochain.planning.candidates import Candidate, candidates
from mpochain.planning.plan import ContractionPlan, Memory, Mode, plan
from mpochain.planning.schedule import MergeStep, Schedule, SweepStep, lower

__all__ = [
    "Candidate",
    "ContractionPlan",
    "Memory",
    "MergeStep",
    "Mode",
    "Schedule",
    "SweepStep",
    "candidates",
    "lower",
    "plan",
]
