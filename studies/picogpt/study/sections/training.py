"""Sentences that describe how the models of a preset were trained."""

from __future__ import annotations

from typing import Any

from studies.picogpt.model import PicoGPT
from studies.picogpt.study.settings import RunSetting

__all__ = ["training"]


# Descriptions of starts from dense weights.
_CUT_STARTS = {"tt_svd": "trained dense weights", "calibrated": "trained dense weights and calibration data"}
# How weight decay treats cores whose learning rate is scaled, by the name in records.
_DECAYS = {"alike": "weight decay unscaled", "with the rates": "weight decay scaled too"}
_RANDOM_STARTS = {"fan-in": "random weights as in nn.Linear", "paper": "random weights as in the paper"}


def training(records: list[dict[str, Any]]) -> list[str]:
    """One sentence per way of training, with its rows; the most frequent way comes first.

    Args:
        records: records of the preset.
    """
    ways: dict[str, list[str]] = {}
    for record in records:
        setting = record["setting"]
        if setting.config is not None and not setting.ablation:
            rows = ways.setdefault(_way(setting, record["training"]["decay"]), [])
            if setting.row not in rows:
                rows.append(setting.row)
    return [f"{way}: {'; '.join(rows)}." for way, rows in sorted(ways.items(), key=lambda way: -len(way[1]))]


def _way(setting: RunSetting, decay: str) -> str:
    config, lessons = setting.config, setting.lessons
    assert config is not None
    cores = f" (scaled by fan-in for cores, {_DECAYS[decay]})" if setting.core_rates else ""
    start = _CUT_STARTS.get(setting.start, _RANDOM_STARTS[setting.initialization])
    if lessons is not None:
        start += (
            f", {lessons.weight:.0%} of the loss on the dense model's predictions at temperature {lessons.temperature}"
        )
    return (
        f"{config.steps:,} steps of {config.batch_size} sequences of {PicoGPT.context} characters from {start}; "
        f"AdamW (betas {config.betas[0]} and {config.betas[1]}, weight decay {config.weight_decay}), learning rate "
        f"{config.learning_rate}{cores}, {config.warmup_steps} steps of warm-up, then cosine decay to zero; gradients "
        f"clipped at {config.clip_norm}"
    )
