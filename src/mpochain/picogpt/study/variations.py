"""A run and what is made of it: other rates, another start, a teacher."""

from __future__ import annotations

from collections.abc import Iterable

from mpochain.picogpt.design import Design
from mpochain.picogpt.study.settings import STARTS, RunSetting, Start
from mpochain.picogpt.training import Lessons
from mpochain.train import TrainConfig

__all__ = ["Rates", "at_rates", "cut_from", "taught_by", "with_rates"]

Rates = tuple[bool, float]  # whether cores learn by their fan-in, and the rate of dense weights


def with_rates(run: RunSetting, rates: Rates) -> RunSetting:
    """The same run at other rates.

    Example:
        >>> dense = RunSetting(row="dense", design=Design(), config=TrainConfig())
        >>> with_rates(dense, (False, 0.01)).config.learning_rate
        0.01
    """
    assert run.config is not None
    by_fan_in, rate = rates
    return run.model_copy(
        update={"core_rates": by_fan_in, "config": run.config.model_copy(update={"learning_rate": rate})}
    )


def cut_from(dense: RunSetting, design: Design, start: Start, tuning: TrainConfig) -> list[RunSetting]:
    """Chains cut from a dense run, as they are and after tuning.

    Example:
        >>> dense = RunSetting(row="dense", design=Design(), config=TrainConfig())
        >>> [run.row for run in cut_from(dense, Design("paper", 8), "tt_svd", TrainConfig(steps=500))]
        ['χ=8, TT-SVD', 'χ=8, TT-SVD and 500 steps']
    """
    row = f"{design}, {STARTS[start]}"
    untuned = RunSetting(row=row, design=design, start=start, source=dense.name, config=None)
    tuned = {"row": f"{row} and {tuning.steps} steps", "core_rates": True, "config": tuning}
    return [untuned, untuned.model_copy(update=tuned)]


def taught_by(dense: RunSetting, run: RunSetting, start: Start = "tt_svd") -> RunSetting:
    """A run with as many steps as the dense one had, which teaches it, after what can be cut of it is its start.

    Example:
        >>> dense = RunSetting(row="dense", design=Design(), config=TrainConfig())
        >>> chains = RunSetting(row="χ=8", design=Design("paper", 8), config=TrainConfig())
        >>> taught_by(dense, chains, "calibrated").row
        'χ=8, calibrated, distilled'
    """
    cut = run.design.family != "dense"
    changed = {
        "row": f"{run.row}, {STARTS[start]}, distilled" if cut else f"{run.row}, distilled",
        "start": start if cut else "random",
        "source": dense.name,
        "lessons": Lessons(),
    }
    return run.model_copy(update=changed)


# What rates are chosen by: few enough steps that all that is compared can have a search of its own.
_SEARCH = {"steps": 300, "warmup_steps": 50, "evaluate_every": 150}


def at_rates(run: RunSetting, rates: Iterable[Rates], *, briefly: bool = False) -> list[RunSetting]:
    """A run once with each of the rates, in few steps or all of its own; all else is as in the run.

    Example:
        >>> dense = RunSetting(row="dense", design=Design(), config=TrainConfig())
        >>> [run.row for run in at_rates(dense, [(False, 0.01)]) + at_rates(dense, [(False, 0.01)], briefly=True)]
        ['dense, rate 0.01', 'dense, 300 steps at 0.01']
    """
    runs = []
    for by_fan_in, rate in rates:
        how = "" if run.design.family == "dense" else " by fan-in" if by_fan_in else " for all"
        row = f"{run.row}, {_SEARCH['steps']} steps at {rate}{how}" if briefly else f"{run.row}, rate {rate}{how}"
        other = with_rates(run, (by_fan_in, rate))
        assert other.config is not None
        config = other.config.model_copy(update=_SEARCH if briefly else {})
        runs.append(other.model_copy(update={"row": row, "config": config, "ablation": True}))
    return runs
