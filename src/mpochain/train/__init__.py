"""One training loop, its configuration and its resumable state."""

from mpochain.train.config import TrainConfig
from mpochain.train.loop import CurvePoint, TrainResult, train

__all__ = ["CurvePoint", "TrainConfig", "TrainResult", "train"]
