"""Training loop with resumable state, and finetuning and distillation of compressed models."""

from mpochain.train.adapter_files import load_adapter, save_adapter
from mpochain.train.adapters import adapt, merge_adapters
from mpochain.train.config import FinetuneConfig, TrainConfig
from mpochain.train.finetuning import finetune
from mpochain.train.groups import parameter_groups
from mpochain.train.loop import train
from mpochain.train.record import CurvePoint, TrainResult

__all__ = [
    "CurvePoint",
    "FinetuneConfig",
    "TrainConfig",
    "TrainResult",
    "adapt",
    "finetune",
    "load_adapter",
    "merge_adapters",
    "parameter_groups",
    "save_adapter",
    "train",
]
