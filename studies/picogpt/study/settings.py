"""Settings of one run of the study, stored as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from mpochain.train import TrainConfig
from mpochain.validation import Validated
from studies.picogpt.design import Design
from studies.picogpt.model import Initialization
from studies.picogpt.training import Lessons

__all__ = ["STARTS", "Kind", "RunSetting", "Start"]

Start = Literal["random", "tt_svd", "calibrated"]
Kind = Literal["trained", "cut", "finetuned", "search"]

# Names of the starts in rows and tables.
STARTS: dict[Start, str] = {"random": "random", "tt_svd": "TT-SVD", "calibrated": "calibrated"}


class RunSetting(Validated):
    """Settings of one run: a model, its start and its training.

    The names of its row and files follow from the fields; no field is parsed from a name.

    Attributes:
        design: shapes of the linear layers.
        bond: χ of the paper's chains of equal size; None for the dense model.
        start: ``"random"``; or a decomposition of the weights of the run ``source``: ``"tt_svd"`` uses only the
            weights, ``"calibrated"`` also the inputs and gradients of the linear layers.
        kind: ``"trained"`` for all steps of the preset; ``"cut"``, decomposed and evaluated without training;
            ``"finetuned"`` for few steps; ``"search"``, trained for few steps to choose learning rates.
        source: name of a dense run of the same preset that provides the weights to start from or the teacher.
        lessons: weight of the predictions of ``source`` in the loss; None to train only on the text.
        initialization: initialisation of a random start.
        core_rates: whether the learning rates of cores are scaled by fan-in.
        ablation: whether the run only tests a choice made in other runs, and is not a row of the table.
        config: training configuration; None for an untrained run.
        seed: seed of the initialisation and of the batches.

    Raises:
        ArgumentError: fields contradict each other, or a field is unknown.

    Example:
        >>> config = TrainConfig(steps=500)
        >>> run = RunSetting(design=Design(width=60), bond=16, kind="finetuned", config=config)
        >>> run.row, run.name
        ('dense, width 60 as χ=16, 500 steps', 'dense-width-60-as-chi16-500-steps-seed42')
    """

    design: Design
    bond: int | None = None
    start: Start = "random"
    kind: Kind = "trained"
    source: str | None = None
    initialization: Initialization = "fan-in"
    core_rates: bool = False
    lessons: Lessons | None = None
    ablation: bool = False
    config: TrainConfig | None
    seed: int = 42

    @model_validator(mode="after")
    def _require_agreement(self) -> RunSetting:
        if self.design.max_bond not in (None, self.bond):
            raise ValueError(f"bond must be the {self.design.max_bond} of its design, got {self.bond}")
        if (self.config is None) is not (self.kind == "cut"):
            raise ValueError(f"a run of kind {self.kind!r} {'needs a' if self.config is None else 'has no'} config")
        return self

    @property
    def model(self) -> str:
        """Name of the design and start in tables."""
        narrow = self.design.family == "dense" and self.bond is not None
        size = f"{self.design} as χ={self.bond}" if narrow else str(self.design)
        return size if self.start == "random" else f"{size}, {STARTS[self.start]}"

    @property
    def row(self) -> str:
        """Name of the table row of this run; runs of one row differ only in the seed."""
        row = f"{self.model}, distilled" if self.lessons else self.model
        if self.config is None:
            return row
        rates = "" if self.design.family == "dense" else " by fan-in" if self.core_rates else " for all"
        if self.kind == "search":
            return f"{row}, {self.config.steps} steps at {self.config.learning_rate}{rates}"
        if self.kind == "finetuned":
            row += f"{',' if self.start == 'random' else ' and'} {self.config.steps} steps"
        return f"{row}, rate {self.config.learning_rate}{rates}" if self.ablation else row

    @property
    def is_of_the_paper(self) -> bool:
        """Whether the paper has this model: dense or on its sites, trained from a random start only on the text."""
        designed = self.design.family == "paper" or (self.design.family == "dense" and self.bond is None)
        plain = self.start == "random" and self.kind == "trained"
        return designed and plain and self.lessons is None and not self.ablation

    @property
    def name(self) -> str:
        """Name of the run's files, without suffix."""
        row = self.row.replace("χ=", "chi").replace(", ", "-").replace(" ", "-")
        return f"{row}-seed{self.seed}"
