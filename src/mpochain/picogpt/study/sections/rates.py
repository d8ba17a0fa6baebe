"""What the choice of learning rates is worth."""

from __future__ import annotations

from typing import Any

from mpochain.picogpt.design import Design
from mpochain.picogpt.study.settings import STARTS
from mpochain.report import Column
from mpochain.report.page import Block, Heading, Table, Text

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

_SAID = (
    "Rows of the same linears, start and steps differ in their rates alone; rates by fan-in are relative to the "
    "learning rate."
)
_BRIEF = " Runs of few steps are there to choose rates by."


def rates(records: list[dict[str, Any]]) -> list[Block]:
    """Every ablation of a preset beside the run that it changes in one thing."""
    ablations = [each["setting"] for each in records if each["setting"]["ablation"]]
    rows = [
        {
            "design": str(Design(**each["setting"]["design"])),
            "start": _start(each["setting"]),
            "steps": each["setting"]["config"]["steps"],
            "rate": each["setting"]["config"]["learning_rate"],
            "cores": _cores(each["setting"]),
            "decay": each["training"]["decay"] if each["setting"]["core_rates"] else None,
            "loss": each["validation"]["loss"],
            "accuracy": each["validation"]["accuracy"],
        }
        for each in records
        if each["setting"]["config"] is not None and any(_alike(each["setting"], other) for other in ablations)
    ]
    rows.sort(key=lambda row: (-row["steps"], row["start"], row["design"], row["cores"] or "", row["rate"]))
    if not rows:
        return []
    said = _SAID + (_BRIEF if len({row["steps"] for row in rows}) > 1 else "")
    return [Heading("Learning rates", 3), Text((said,)), Table(_COLUMNS, rows)]


def _alike(setting: dict[str, Any], other: dict[str, Any]) -> bool:
    same = all(setting[key] == other[key] for key in ("design", "start", "lessons", "seed"))
    return same and setting["config"]["steps"] == other["config"]["steps"]


def _start(setting: dict[str, Any]) -> str:
    start = STARTS[setting["start"]]
    return f"{start}, distilled" if setting["lessons"] else start


def _cores(setting: dict[str, Any]) -> str | None:
    if setting["design"]["family"] == "dense":
        return None
    return "by fan-in" if setting["core_rates"] else "as all"
