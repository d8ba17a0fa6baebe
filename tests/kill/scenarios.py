"""What is killed: each piece of work, the older result that it replaces, and how its result is known."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from texts import prose
from tiny import write_model
from torch import nn

import mpochain as mpo
from mpochain.language import load_language_model, save_dense, save_language_model
from mpochain.train import FinetuneConfig
from mpochain.workflows import Recipe, compress_by, distill_by, finetune_by

__all__ = ["SCENARIOS", "Inputs", "Scenario", "parts", "write_inputs"]

# Files that an unfinished run may leave beside its result.
_UNFINISHED = {"finetune.state", "finetune.begun.json", "stages", "unfinished", "run.state"}


@dataclass(frozen=True)
class Inputs:
    """Models and texts of all scenarios, in one folder."""

    folder: Path

    def recipe(self, **fields: Any) -> Recipe:
        """A recipe of the small model."""
        evaluation = {"text": self.folder / "test.txt", "window": 16, "windows": 2}
        return Recipe.model_validate({"model": str(self.folder / "dense"), "evaluation": evaluation, **fields})

    def finetune(self, **training: Any) -> dict[str, Any]:
        """The section of a recipe."""
        settings = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "distillation": 0.0}
        text = self.folder / "valid.txt"
        return {"text": text, "window": 16, "windows": 8, "training": settings | training}


@dataclass(frozen=True)
class Scenario:
    """A piece of work.

    Attributes:
        old: writes the older result into a folder.
        new: writes the new result over it, from the start or from where a killed process stopped.
    """

    old: Callable[[Inputs, Path], None]
    new: Callable[[Inputs, Path], None]


def write_inputs(folder: Path) -> Inputs:
    """Write the models and texts of all scenarios."""
    write_model(folder / "dense", layers=1)
    (folder / "valid.txt").write_text(prose(2000, seed=1), encoding="utf-8")
    (folder / "test.txt").write_text(prose(800, seed=2), encoding="utf-8")
    for name, budget in (("small", 0.6), ("smaller", 0.4)):
        language = load_language_model(folder / "dense")
        mpo.compress(language.model, budget, method="svd")
        if name == "smaller":
            language.tokenizer.add_tokens(["queenly"])  # so that the tokenizers differ too
        save_language_model(language, folder / name)
    return Inputs(folder)


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(11, 8), mpo.MPOLinear(8, 11, max_bond=2))


def _save(seed: int) -> Callable[[Inputs, Path], None]:
    def save(inputs: Inputs, trial: Path) -> None:
        mpo.save(_net(seed), trial / "out")

    return save


def _save_language(name: str) -> Callable[[Inputs, Path], None]:
    def save(inputs: Inputs, trial: Path) -> None:
        save_language_model(load_language_model(inputs.folder / name), trial / "out")

    return save


def _convert(name: str) -> Callable[[Inputs, Path], None]:
    def convert(inputs: Inputs, trial: Path) -> None:
        save_dense(load_language_model(inputs.folder / name), trial / "out", overwrite=True)

    return convert


def _train(inputs: Inputs, trial: Path) -> None:
    model, windows = _net(0), torch.arange(88).view(8, 11) % 11
    config = FinetuneConfig(steps=6, batch_size=4, learning_rate=0.1, checkpoint_every=1)
    mpo.finetune(model, windows, config=config, checkpoint=trial / "out" / "run.state")
    mpo.save(model, trial / "out")


def _nothing(inputs: Inputs, trial: Path) -> None:
    """There is no older result."""


def _compress(budget: float, command: str) -> Callable[[Inputs, Path], None]:
    def compress(inputs: Inputs, trial: Path) -> None:
        recipe = inputs.recipe(
            budget=budget,
            method="svd_llm",
            calibration={"text": inputs.folder / "valid.txt", "window": 16, "windows": 2},
        )
        compress_by(recipe, trial / "out", command=command, overwrite=True)

    return compress


def _finetune(rate: float, command: str) -> Callable[[Inputs, Path], None]:
    def finetune(inputs: Inputs, trial: Path) -> None:
        recipe = inputs.recipe(finetune=inputs.finetune(learning_rate=rate))
        finetune_by(recipe, inputs.folder / "small", trial / "out", command=command, overwrite=True)

    return finetune


def _distill(rank: int, command: str) -> Callable[[Inputs, Path], None]:
    def distill(inputs: Inputs, trial: Path) -> None:
        targets = {"words": "re:.*up_proj", "mlps": "re:.*down_proj"}
        stages = [
            {"name": name, "groups": [{"targets": [target], "method": "svd", "budget": 0.2 * rank}]}
            for name, target in targets.items()
        ]
        recipe = inputs.recipe(finetune=inputs.finetune(steps=2), stages=stages)
        distill_by(recipe, trial / "out", command=command, overwrite=True)

    return distill


SCENARIOS = {
    "save": Scenario(_save(0), _save(1)),
    "save-first": Scenario(_nothing, _save(1)),
    "save-language": Scenario(_save_language("small"), _save_language("smaller")),
    "convert": Scenario(_convert("small"), _convert("smaller")),
    "train": Scenario(_nothing, _train),
    "compress": Scenario(_compress(0.5, "old"), _compress(0.7, "new")),
    "compress-first": Scenario(_nothing, _compress(0.7, "new")),
    "finetune": Scenario(_finetune(1e-3, "old"), _finetune(1e-2, "new")),
    "distill": Scenario(_distill(1, "old"), _distill(2, "new")),
}


def parts(trial: Path) -> dict[str, str]:
    """What the result in a trial's folder consists of: each file by its content, but a record by what does not vary."""
    out = trial / "out"
    content = {}
    for place, folders, files in os.walk(out):
        folders[:] = [name for name in folders if name not in _UNFINISHED and not name.startswith(".")]
        for name in files:
            file = Path(place) / name
            key = file.relative_to(out).as_posix()
            if name not in _UNFINISHED and not name.startswith("."):
                content[key] = _record(file) or sha256(file.read_bytes()).hexdigest()
    return content


def _record(file: Path) -> str | None:
    """A record without its times, and what depends on when it was written."""
    if file.name == "report.html":
        return re.search("Made by .{0,8}(old|new)", file.read_text(encoding="utf-8"))[1]
    if file.name not in ("report.json", "finetune.json", "distillation.json"):
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    losses = [record.get("training", {}).get("losses")]
    losses += [stage["training"]["losses"] for stage in record.get("stages", [])]
    return json.dumps([record["command"], losses])
