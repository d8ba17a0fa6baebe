"""Page section on learning rates: ablations beside the runs that they vary."""

from __future__ import annotations

from typing import Any

from mpochain.report import Column
from mpochain.report.page import Block, Heading, Table, Text
from studies.picogpt.study.settings import STARTS, RunSetting

__all__ = ["rates"]

_COLUMNS = (
    Column("design", "linears"),
    Column("start", "start"),
    Column("steps", "steps", ","),
    Column("rate", "learning rate"),
    Column("cores", "rates of cores"),
    Column("decay", "cores decay"),
    Column("loss", "validation loss", ".3f"),
    Column("accuracy", "accuracy", ".2%"),
)

_PREFACE = (
    "Rows with the same linear layers, start and steps differ only in their rates; rates by fan-in are relative to the "
    "learning rate."
)
_BRIEF = " Runs of few steps serve to choose rates."


def rates(records: list[dict[str, Any]]) -> list[Block]:
    """Blocks that list every ablation of a preset beside the run that differs from it only in the rates."""
    ablations = [record["setting"] for record in records if record["setting"].ablation]
    rows = [
        _row(record)
        for record in records
        if record["setting"].config is not None
        and any(_differ_in_rates(record["setting"], ablation) for ablation in ablations)
    ]
    rows.sort(key=lambda row: (-row["steps"], row["start"], row["design"], row["cores"] or "", row["rate"]))
    if not rows:
        return []
    preface = _PREFACE + (_BRIEF if len({row["steps"] for row in rows}) > 1 else "")
    return [Heading("Learning rates", 3), Text((preface,)), Table(_COLUMNS, rows)]


def _row(record: dict[str, Any]) -> dict[str, Any]:
    setting = record["setting"]
    return {
        "design": str(setting.design),
        "start": _start(setting),
        "steps": setting.config.steps,
        "rate": setting.config.learning_rate,
        "cores": _cores(setting),
        "decay": record["training"]["decay"] if setting.core_rates else None,
        "loss": record["validation"]["loss"],
        "accuracy": record["validation"]["accuracy"],
    }


def _differ_in_rates(setting: RunSetting, ablation: RunSetting) -> bool:
    """Whether two runs differ at most in their rates."""
    assert setting.config is not None
    assert ablation.config is not None
    same = all(getattr(setting, field) == getattr(ablation, field) for field in ("design", "start", "lessons", "seed"))
    return same and setting.config.steps == ablation.config.steps


def _start(setting: RunSetting) -> str:
    start = STARTS[setting.start]
    return f"{start}, distilled" if setting.lessons else start


def _cores(setting: RunSetting) -> str | None:
    if setting.design.family == "dense":
        return None
    return "by fan-in" if setting.core_rates else "as all"
