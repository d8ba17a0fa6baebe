"""Contraction planning from shapes alone: candidates, kernel models and a cost model. Does not import torch."""

from mpochain.planning.candidates import Candidate, candidates
from mpochain.planning.conditions import Conditions, Graph, Memory, Mode
from mpochain.planning.kernel_models import MODELS, KernelModel
from mpochain.planning.machine import Machine, Setting
from mpochain.planning.plan import Considered, ContractionPlan, plan
from mpochain.planning.schedule import MergeStep, Schedule, SweepStep, lower
from mpochain.planning.store import measured_machine
from mpochain.planning.variants import Variant

__all__ = [
    "MODELS",
    "Candidate",
    "Conditions",
    "Considered",
    "ContractionPlan",
    "Graph",
    "KernelModel",
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
    "measured_machine",
    "plan",
]
