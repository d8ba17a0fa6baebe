"""Variations of a run of the study: other learning rates, a start from dense weights, a teacher."""

from __future__ import annotations

from collections.abc import Iterable

from mpochain.train import TrainConfig
from studies.picogpt.design import Design
from studies.picogpt.study.settings import RunSetting, Start
from studies.picogpt.training import Lessons

__all__ = ["Rates", "at_rates", "cut_from", "taught_by", "with_rates"]

Rates = tuple[bool, float]  # whether the rates of cores are scaled by fan-in, and the learning rate of dense weights


def with_rates(run: RunSetting, rates: Rates) -> RunSetting:
    """Return a copy of a run with other learning rates.

    Example:
        >>> dense = RunSetting(design=Design(), config=TrainConfig())
        >>> with_rates(dense, (False, 0.01)).config.learning_rate
        0.01
    """
    assert run.config is not None
    by_fan_in, rate = rates
    return run.model_copy(
        update={"core_rates": by_fan_in, "config": run.config.model_copy(update={"learning_rate": rate})}
    )


def cut_from(dense: RunSetting, design: Design, start: Start, config: TrainConfig) -> list[RunSetting]:
    """Return two runs of chains decomposed from a dense run: one without training, one finetuned.

    Example:
        >>> dense = RunSetting(design=Design(), config=TrainConfig())
        >>> [run.row for run in cut_from(dense, Design("paper", 8), "tt_svd", TrainConfig(steps=500))]
        ['χ=8, TT-SVD', 'χ=8, TT-SVD and 500 steps']
    """
    cut = RunSetting(design=design, bond=design.max_bond, start=start, kind="cut", source=dense.name, config=None)
    return [cut, cut.model_copy(update={"kind": "finetuned", "core_rates": True, "config": config})]


def taught_by(dense: RunSetting, run: RunSetting, start: Start = "tt_svd") -> RunSetting:
    """Return a copy of a run that is also taught by a dense run; its chains start from the dense weights.

    Example:
        >>> dense = RunSetting(design=Design(), config=TrainConfig())
        >>> chains = RunSetting(design=Design("paper", 8), bond=8, config=TrainConfig())
        >>> taught_by(dense, chains, "calibrated").row
        'χ=8, calibrated, distilled'
    """
    own_start = start if run.design.family != "dense" else "random"
    return run.model_copy(update={"start": own_start, "source": dense.name, "lessons": Lessons()})


# Learning rates are chosen in runs of few steps, so that every design can have its own search.
_SEARCH = {"steps": 300, "warmup_steps": 50, "evaluate_every": 150}


def at_rates(run: RunSetting, rates: Iterable[Rates], *, briefly: bool = False) -> list[RunSetting]:
    """Return ablations of a run, one per pair of rates, with all of its steps or with few; other fields are the same.

    Example:
        >>> dense = RunSetting(design=Design(), config=TrainConfig())
        >>> [run.row for run in at_rates(dense, [(False, 0.01)]) + at_rates(dense, [(False, 0.01)], briefly=True)]
        ['dense, rate 0.01', 'dense, 300 steps at 0.01']
    """
    ablations = []
    for rate in rates:
        ablation = with_rates(run, rate).model_copy(update={"ablation": True})
        if briefly:
            assert ablation.config is not None
            config = ablation.config.model_copy(update=_SEARCH)
            ablation = ablation.model_copy(update={"kind": "search", "config": config})
        ablations.append(ablation)
    return ablations
