"""What a run of the study is: a value that fits into one line of JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mpochain.picogpt.design import Design
from mpochain.picogpt.model import Initialization
from mpochain.picogpt.training import Lessons
from mpochain.train import TrainConfig

__all__ = ["STARTS", "RunSetting", "Start"]

Start = Literal["random", "tt_svd", "calibrated"]

# As rows and tables name them.
STARTS: dict[Start, str] = {"random": "random", "tt_svd": "TT-SVD", "calibrated": "calibrated"}


class RunSetting(BaseModel):
    """One model of the study, trained once.

    Attributes:
        row: the row of the table it belongs to; runs of one row differ in the seed alone.
        design: its linears.
        start: ``"random"``; or cut from the weights of the run named by ``source``, ``"tt_svd"`` by these alone,
            ``"calibrated"`` by what the linears see too.
        source: name of a dense run of the same preset, which the run starts from or learns from.
        lessons: how much it learns of the predictions of ``source`` too; None for the text alone.
        initialization: of a random start.
        core_rates: whether cores learn at rates by their fan-in.
        ablation: whether it shows what a choice of the other runs is worth, and is no row of the table.
        config: how it is trained; None for a decomposition that is evaluated as it is.
        seed: of the initialisation and of the batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    design: Design
    start: Start = "random"
    source: str | None = None
    initialization: Initialization = "fan-in"
    core_rates: bool = False
    lessons: Lessons | None = None
    ablation: bool = False
    config: TrainConfig | None
    seed: int = 42

    @property
    def name(self) -> str:
        """The file it is kept in, without suffix."""
        row = self.row.replace("χ=", "chi").replace(", ", "-").replace(" ", "-")
        return f"{row}-seed{self.seed}"
