"""Settings of a run of the study, as fields that fit into one line of JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from mpochain.train import TrainConfig
from studies.picogpt.design import Design
from studies.picogpt.model import Initialization
from studies.picogpt.training import Lessons

__all__ = ["STARTS", "Kind", "RunSetting", "Start"]

Start = Literal["random", "tt_svd", "calibrated"]
Kind = Literal["trained", "cut", "finetuned", "search"]

# Names of the starts in rows and tables.
STARTS: dict[Start, str] = {"random": "random", "tt_svd": "TT-SVD", "calibrated": "calibrated"}


class RunSetting(BaseModel):
    """One model of the study, trained once.

    The name of its row and of its files follow from the fields; nothing is read from a name.

    Attributes:
        design: shapes of its linear layers.
        bond: χ of the paper's chains that have as many parameters; None for the dense model.
        start: ``"random"``; or cut from the weights of the run named by ``source``: ``"tt_svd"`` uses these alone,
            ``"calibrated"`` the inputs and gradients of the linear layers too.
        kind: ``"trained"`` in all steps of the preset; ``"cut"`` from dense weights and evaluated without training;
            ``"finetuned"`` in few steps; ``"search"``, trained in few steps to choose learning rates.
        source: name of a dense run of the same preset, whose weights it starts from or whose predictions it learns.
        lessons: how much it learns from the predictions of ``source``; None for the text alone.
        initialization: of a random start.
        core_rates: whether cores learn at rates by their fan-in.
        ablation: whether it measures what a choice of the other runs is worth, and is no row of the table.
        config: of the training; None for a run that is not trained.
        seed: of the initialisation and of the batches.

    Raises:
        pydantic.ValidationError: fields that contradict each other, or an unknown one (also a ValueError).

    Example:
        >>> config = TrainConfig(steps=500)
        >>> run = RunSetting(design=Design(width=60), bond=16, kind="finetuned", config=config)
        >>> run.row, run.name
        ('dense, width 60 as χ=16, 500 steps', 'dense-width-60-as-chi16-500-steps-seed42')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        """The design and the start, as tables name them."""
        narrow = self.design.family == "dense" and self.bond is not None
        size = f"{self.design} as χ={self.bond}" if narrow else str(self.design)
        return size if self.start == "random" else f"{size}, {STARTS[self.start]}"

    @property
    def row(self) -> str:
        """The row of the table it belongs to; runs of one row differ in the seed alone."""
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
        """Whether the paper has this model: dense or on its sites, trained from a random start on the text alone."""
        designed = self.design.family == "paper" or (self.design.family == "dense" and self.bond is None)
        plain = self.start == "random" and self.kind == "trained"
        return designed and plain and self.lessons is None and not self.ablation

    @property
    def name(self) -> str:
        """The file it is kept in, without suffix."""
        row = self.row.replace("χ=", "chi").replace(", ", "-").replace(" ", "-")
        return f"{row}-seed{self.seed}"
