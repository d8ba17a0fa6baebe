"""PicoGPT study: the paper's table with correct counts, controls of equal size, errors of chains, and times."""

from studies.picogpt.study.presets import PRESETS, preset
from studies.picogpt.study.run import MEASURES, run_preset
from studies.picogpt.study.settings import RunSetting

__all__ = ["MEASURES", "PRESETS", "RunSetting", "preset", "run_preset"]
