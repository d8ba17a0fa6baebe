"""The study: the paper's table with true counts, controls of about equal size, errors on trained weights, and times."""

from mpochain.picogpt.study.run import run_preset
from mpochain.picogpt.study.settings import PRESETS, RunSetting, preset

__all__ = ["PRESETS", "RunSetting", "preset", "run_preset"]
