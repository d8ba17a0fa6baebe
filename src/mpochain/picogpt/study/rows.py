"""Records of runs to the rows of the quality table: seeds joined, each model beside what it is compared with."""

from __future__ import annotations

import math
import statistics
from typing import Any

from mpochain.picogpt.corpus import TINY_SHAKESPEARE
from mpochain.picogpt.design import Design
from mpochain.picogpt.study.claims import PUBLISHED
from mpochain.picogpt.study.settings import RunSetting

__all__ = ["rows_of"]


def _design(record: dict[str, Any]) -> Design:
    return Design(**record["setting"]["design"])


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all seeds of a model: the dense one first, then by χ, controls beside what they are compared with."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["setting"]["row"], []).append(record)
    dense = groups.get("dense")
    by_name = {_name(record): record for record in records}
    rows = []
    for name, runs in groups.items():
        first, design = runs[0], _design(runs[0])
        accuracies = [run["validation"]["accuracy"] for run in runs]
        losses = [run["validation"]["loss"] for run in runs]
        accuracy, loss = statistics.fmean(accuracies), statistics.fmean(losses)
        published = PUBLISHED.get(name) if first["corpus"]["sha256"] == TINY_SHAKESPEARE.sha256 else None
        rows.append(
            {
                "row": name,
                "design": design,
                "bond": _bond(first),
                "start": first["setting"]["start"],
                "distilled": first["setting"]["lessons"] is not None,
                "steps": (first["setting"]["config"] or {"steps": 0})["steps"],
                "parameters": first["parameters"],
                "compression": dense[0]["parameters"] / first["parameters"] if dense else None,
                "block_compression": dense[0]["block_parameters"] / first["block_parameters"] if dense else None,
                "loss": loss,
                "perplexity": math.exp(loss),
                "accuracy": accuracy,
                "by_seed": {run["setting"]["seed"]: run["validation"]["accuracy"] for run in runs},
                "spread": f"{(max(accuracies) - min(accuracies)) / 2:.2%} ({len(runs)})" if len(runs) > 1 else "- (1)",
                "kept": _kept(runs, dense, by_name),
                "share": first["parameters"] / paper if (paper := _paper_parameters(first, records)) else None,
                "per_root": accuracy / math.sqrt(first["parameters"]),
                "macs_per_token": first["macs_per_token"],
                "fewest_macs_per_token": first["fewest_macs_per_token"],
                "published_parameters": published.parameters if published else None,
                "published_loss": published.loss if published else None,
                "published_accuracy": published.accuracy if published else None,
            }
        )
    return sorted(
        rows, key=lambda row: (row["row"] != "dense", row["bond"], row["design"].family != "paper", row["row"])
    )


def _name(record: dict[str, Any]) -> str:
    return RunSetting.model_validate(record["setting"]).name


def _kept(
    runs: list[dict[str, Any]], dense: list[dict[str, Any]] | None, by_name: dict[str, dict[str, Any]]
) -> float | None:
    """Mean share of the dense accuracy: of the run it was decomposed from, else of the dense run of the same seed."""
    shares = []
    for run in runs:
        source = by_name.get(run["setting"]["source"] or "")
        same_seed = [each for each in dense or [] if each["setting"]["seed"] == run["setting"]["seed"]]
        compared = source or (same_seed[0] if same_seed else None)
        if compared is None:
            return None
        shares.append(run["validation"]["accuracy"] / compared["validation"]["accuracy"])
    return statistics.fmean(shares)


def _paper_parameters(record: dict[str, Any], records: list[dict[str, Any]]) -> int | None:
    """Parameters of the paper's chains that a control is compared with."""
    bond = _bond(record)
    found = [each for each in records if _design(each) == Design("paper", bond)] if bond else []
    return int(found[0]["parameters"]) if found else None


def _bond(record: dict[str, Any]) -> int:
    """The χ a run is compared at, 0 for none; narrow dense models have it in their name alone."""
    bond = _design(record).max_bond
    if bond is not None:
        return bond
    name = record["setting"]["row"].rpartition("χ=")[2].partition(",")[0]
    return int(name) if name.isdigit() else 0
