"""Rows of the quality table, averaged over seeds and compared with the dense reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.picogpt.corpus import TINY_SHAKESPEARE
from studies.picogpt.design import Design
from studies.picogpt.study.published import PUBLISHED
from studies.picogpt.study.settings import RunSetting

__all__ = ["described", "paper_row", "rows_of"]

Records = list[dict[str, Any]]


def described(setting: RunSetting) -> dict[str, Any]:
    """Fields of a row that follow from the setting of its runs.

    Example:
        >>> described(RunSetting(design=Design("skewed", 4), bond=4, kind="cut", config=None))["model"]
        'skewed as χ=4'
    """
    return {
        "row": setting.row,
        "model": setting.model,
        "design": setting.design,
        "bond": setting.bond,
        "start": setting.start,
        "kind": setting.kind,
        "distilled": setting.lessons is not None,
        "steps": setting.config.steps if setting.config else 0,
        "of_paper": setting.is_of_the_paper,
    }


def paper_row(rows: Sequence[Mapping[str, Any]], bond: int | None) -> Mapping[str, Any] | None:
    """Row of the paper's chains of one bond, or of its dense model for None; None if it has not been run."""
    return next((row for row in rows if row["of_paper"] and row["bond"] == bond), None)


def rows_of(records: Records) -> list[dict[str, Any]]:
    """Rows of all models, one per model over its seeds: dense first, then by χ, the paper's chains before controls.

    Args:
        records: see :func:`studies.picogpt.study.records.read_record`.
    """
    groups: dict[str, Records] = {}
    for record in records:
        groups.setdefault(record["setting"].row, []).append(record)
    dense = [record for record in records if record["setting"].is_of_the_paper and record["setting"].bond is None]
    by_name = {record["setting"].name: record for record in records}
    rows = []
    for runs in groups.values():
        first, setting = runs[0], runs[0]["setting"]
        accuracies = [run["validation"]["accuracy"] for run in runs]
        accuracy = statistics.fmean(accuracies)
        loss = statistics.fmean(run["validation"]["loss"] for run in runs)
        is_published = setting.is_of_the_paper and first["corpus"]["sha256"] == TINY_SHAKESPEARE.sha256
        published = PUBLISHED.get(setting.bond) if is_published else None
        rows.append(
            {
                **described(setting),
                "parameters": first["parameters"],
                "compression": dense[0]["parameters"] / first["parameters"] if dense else None,
                "block_compression": dense[0]["block_parameters"] / first["block_parameters"] if dense else None,
                "loss": loss,
                "perplexity": math.exp(loss),
                "accuracy": accuracy,
                "by_seed": {run["setting"].seed: run["validation"]["accuracy"] for run in runs},
                "spread": f"{(max(accuracies) - min(accuracies)) / 2:.2%} ({len(runs)})" if len(runs) > 1 else "- (1)",
                "kept": _kept(runs, dense, by_name),
                "share": first["parameters"] / paper if (paper := _paper_parameters(setting, records)) else None,
                "per_root": accuracy / math.sqrt(first["parameters"]),
                "macs_per_token": first["macs_per_token"],
                "fewest_macs_per_token": first["fewest_macs_per_token"],
                "published_parameters": published.parameters if published else None,
                "published_loss": published.loss if published else None,
                "published_accuracy": published.accuracy if published else None,
            }
        )
    return sorted(rows, key=lambda row: (row["bond"] or 0, row["design"].family != "paper", row["row"]))


def _kept(runs: Records, dense: Records, by_name: dict[str, dict[str, Any]]) -> float | None:
    """Mean share of the accuracy of the dense source run, or else of the dense run with the same seed."""
    by_seed = {record["setting"].seed: record for record in dense}
    shares = []
    for run in runs:
        reference = by_name.get(run["setting"].source or "") or by_seed.get(run["setting"].seed)
        if reference is None:
            return None
        shares.append(run["validation"]["accuracy"] / reference["validation"]["accuracy"])
    return statistics.fmean(shares)


def _paper_parameters(setting: RunSetting, records: Records) -> int | None:
    """Parameters of the paper's chains of the same size; None for the dense model."""
    if setting.bond is None:
        return None
    paper = Design("paper", setting.bond)
    return next((int(record["parameters"]) for record in records if record["setting"].design == paper), None)
