"""The study: the paper's table with true counts, controls of about equal size, errors on trained weights, and times."""

from mpochain.picogpt.study.presets import PRESETS, preset
from mpochain.picogpt.study.run import MEASURES, run_preset
from mpochain.picogpt.study.settings import RunSetting

__all__ = ["MEASURES", "PRESETS", "RunSetting", "preset", "run_preset"]
