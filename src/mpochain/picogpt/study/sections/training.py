"""How the models of a preset were trained, from the settings of its runs."""

from __future__ import annotations

from typing import Any

from mpochain.picogpt.model import PicoGPT

__all__ = ["training"]


def training(records: list[dict[str, Any]]) -> list[str]:
    """A sentence for each way that runs of the table were trained, that of the most rows first.

    Args:
        records: of the preset.
    """
    ways: dict[str, list[str]] = {}
    for record in records:
        setting = record["setting"]
        if setting["config"] is not None and not setting["ablation"]:
            rows = ways.setdefault(_way(setting, record["training"]["decay"]), [])
            if setting["row"] not in rows:
                rows.append(setting["row"])
    return [f"{way}: {'; '.join(rows)}." for way, rows in sorted(ways.items(), key=lambda way: -len(way[1]))]


def _way(setting: dict[str, Any], decay: str) -> str:
    config = setting["config"]
    cores = f", cores at rates by their fan-in relative to it, decaying {decay}" if setting["core_rates"] else ""
    start = {
        "tt_svd": "trained dense weights",
        "calibrated": "trained dense weights and what they see",
        "random": {"fan-in": "weights of the deviation of nn.Linear", "paper": "the paper's deviations"}[
            setting["initialization"]
        ],
    }[setting["start"]]
    if lessons := setting["lessons"]:
        said = f"the dense model's predictions at temperature {lessons['temperature']}"
        start += f", {said} being {lessons['weight']:.0%} of the loss"
    return (
        f"{config['steps']:,} steps of {config['batch_size']} sequences of {PicoGPT.context} characters from {start}; "
        f"AdamW (betas {config['betas'][0]} and {config['betas'][1]}, weight decay {config['weight_decay']}), learning "
        f"rate {config['learning_rate']}{cores}, {config['warmup_steps']} steps of warm-up, then a cosine to zero; "
        f"gradients clipped at {config['clip_norm']}"
    )
