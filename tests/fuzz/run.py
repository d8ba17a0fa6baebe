"""Runs of the fuzz suite: a mutant for every number, its outcome counted by target."""

from __future__ import annotations

import random
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from fuzz.checkpoints import Checkpoints
from fuzz.outcomes import outcome_of
from fuzz.states import PlanStore, TrainingStates
from fuzz.texts import Listings, Recipes, WordNets

# Targets and how often each is drawn.
TARGETS = {
    "checkpoint": 8,
    "checkpoint of transformers": 2,
    "recipe": 4,
    "listing of units": 1,
    "WordNet files": 1,
    "plan store": 2,
    "training state": 2,
}
# Outcomes that are allowed. A plan store is a cache: what is invalid there is measured again.
ALLOWED = {"same", "refused", "ignored"}


class Suite:
    """All targets with their files in a temporary folder."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        folder = Path(folder)
        self.checkpoints = checkpoints = Checkpoints(folder)
        self.targets = {
            "checkpoint": lambda draw: checkpoints.mutant(draw, own=True),
            "checkpoint of transformers": lambda draw: checkpoints.mutant(draw, own=False),
            "recipe": Recipes(folder).mutant,
            "listing of units": Listings(folder).mutant,
            "WordNet files": WordNets(folder).mutant,
            "plan store": PlanStore(folder).mutant,
            "training state": TrainingStates(folder).mutant,
        }

    def pristine(self):
        """Outcomes of the files that mutants are made of, by target."""
        outcomes = {name: set() for name in TARGETS}
        for name in self.checkpoints.models:
            target = "checkpoint of transformers" if name in self.checkpoints.others else "checkpoint"
            outcomes[target].add(self.checkpoints.pristine(name)())
        for target in outcomes.keys() - {"checkpoint", "checkpoint of transformers"}:
            read, _, _ = self.targets[target](None)
            outcomes[target].add(read())
        return outcomes

    def run(self, seed, number):
        """Make the mutant of a number and read it; return its target, outcome and details."""
        draw = random.Random(f"{seed}/{number}")
        (name,) = draw.choices(list(TARGETS), list(TARGETS.values()))
        read, files, names = self.targets[name](draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, details = outcome_of(read, files, names)
        if outcome == "ignored" and name != "plan store":
            outcome = "wrong content"
        return name, outcome, details


def counted(suite, seed, numbers, report=lambda *_: None):
    """Outcomes of a range of mutants by target; ``report`` is called with each that is not allowed."""
    counts = {name: Counter() for name in TARGETS}
    for number in numbers:
        name, outcome, details = suite.run(seed, number)
        counts[name][outcome] += 1
        if outcome not in ALLOWED:
            report(number, name, outcome, details)
    return counts


def temporary_folder():
    """A folder in memory where there is one, as every mutant is a file."""
    shared = Path("/dev/shm")
    return tempfile.mkdtemp(prefix="mpochain-fuzz-", dir=shared if shared.is_dir() else None)


def remove(folder):
    """Remove a temporary folder."""
    shutil.rmtree(folder, ignore_errors=True)
