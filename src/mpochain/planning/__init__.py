"""Shapes to contraction plans: what to fold, in which order to sweep, at what cost. No tensors, no torch."""

from mpochain.planning.candidates import Candidate, candidates
from mpochain.planning.machine import Machine, Setting
from mpochain.planning.plan import Considered, ContractionPlan, Memory, Mode, plan
from mpochain.planning.schedule import MergeStep, Schedule, SweepStep, lower
from mpochain.planning.variants import Variant

__all__ = [
    "Candidate",
    "Considered",
    "ContractionPlan",
    "Machine",
    "Memory",
    "MergeStep",
    "Mode",
    "Schedule",
    "Setting",
    "SweepStep",
    "Variant",
    "candidates",
    "lower",
    "plan",
]
