"""Training loop with resumable state, and finetuning and distillation of compressed models."""

from mpochain.train.config import FinetuneConfig, TrainConfig
from mpochain.train.finetuning import finetune
from mpochain.train.groups import parameter_groups
from mpochain.train.loop import train
from mpochain.train.record import CurvePoint, TrainResult

__all__ = ["CurvePoint", "FinetuneConfig", "TrainConfig", "TrainResult", "finetune", "parameter_groups", "train"]
