"""Sentences on how the models of a preset were trained, from the settings of its runs."""

from __future__ import annotations

from typing import Any

from studies.picogpt.model import PicoGPT
from studies.picogpt.study.settings import RunSetting

__all__ = ["training"]


# Starts from dense weights.
_CUT_STARTS = {"tt_svd": "trained dense weights", "calibrated": "trained dense weights and what they see"}
_RANDOM_STARTS = {"fan-in": "weights of the deviation of nn.Linear", "paper": "the paper's deviations"}


def training(records: list[dict[str, Any]]) -> list[str]:
    """A sentence for each way of training that rows of the table have, the way of the most rows first.

    Args:
        records: of the preset.
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
    cores = f", cores at rates by their fan-in relative to it, decaying {decay}" if setting.core_rates else ""
    start = _CUT_STARTS.get(setting.start, _RANDOM_STARTS[setting.initialization])
    if lessons is not None:
        start += (
            f", the dense model's predictions at temperature {lessons.temperature} being {lessons.weight:.0%} of the "
            "loss"
        )
    return (
        f"{config.steps:,} steps of {config.batch_size} sequences of {PicoGPT.context} characters from {start}; "
        f"AdamW (betas {config.betas[0]} and {config.betas[1]}, weight decay {config.weight_decay}), learning rate "
        f"{config.learning_rate}{cores}, {config.warmup_steps} steps of warm-up, then a cosine to zero; gradients "
        f"clipped at {config.clip_norm}"
    )
