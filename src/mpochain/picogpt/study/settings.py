"""What the study runs: a preset is a list of runs, each of them a value that fits into one line of JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mpochain.errors import SpecError
from mpochain.picogpt.design import Design, Family
from mpochain.picogpt.model import Initialization, build, narrow_width
from mpochain.picogpt.size import parameter_count
from mpochain.picogpt.training import LEARNING_RATE, Lessons
from mpochain.train import TrainConfig

__all__ = ["PRESETS", "RunSetting", "preset"]

_BONDS = (4, 8, 16, 32)
_SEEDS = (42, 43, 44)
_FAMILIES: tuple[Family, ...] = ("low rank", "skewed")

Start = Literal["random", "tt_svd"]


class RunSetting(BaseModel):
    """One model of the study, trained once.

    Attributes:
        row: the row of the table it belongs to; runs of one row differ in the seed alone.
        design: its linears.
        start: ``"random"``, or ``"tt_svd"`` of the weights of the run named by ``source``.
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


def _equal_width(max_bond: int, vocab_size: int) -> Design:
    parameters = parameter_count(build(max_bond, vocab_size=vocab_size, seed=0))
    return Design(width=narrow_width(parameters, vocab_size))


def _decomposed(bond: int, dense: RunSetting, tuning: TrainConfig) -> list[RunSetting]:
    """TT-SVD of a dense run, as it is and after tuning."""
    row = f"χ={bond}, TT-SVD"
    return [
        RunSetting(
            row=name,
            design=Design("paper", bond),
            start="tt_svd",
            source=dense.name,
            core_rates=config is not None,
            config=config,
        )
        for name, config in ((row, None), (f"{row} and {tuning.steps} steps", tuning))
    ]


# For all cores, where rates by their fan-in do not suit: in low rank of few parameters, or with a teacher.
_ONE_RATE = 1.5e-2
# Of a chain that has as many steps as its source had, and the source's word beside the text. After 300 steps skewed
# chains have a loss of 1.657 by fan-in, 1.666 with one rate; low rank 1.742 and 1.693.
_TAUGHT = TrainConfig(learning_rate=LEARNING_RATE, evaluate_every=250)
_TAUGHT_LOW_RANK = TrainConfig(learning_rate=_ONE_RATE, evaluate_every=250)


def _taught(design: Design, dense: RunSetting) -> RunSetting:
    """A chain cut from a dense model, which then teaches it."""
    low_rank = design.family == "low rank"
    return RunSetting(
        row=f"{design}, TT-SVD, distilled",
        design=design,
        start="tt_svd",
        source=dense.name,
        core_rates=not low_rank,
        lessons=Lessons(),
        config=_TAUGHT_LOW_RANK if low_rank else _TAUGHT,
    )


def _taught_narrow(narrow: RunSetting, dense: RunSetting) -> RunSetting:
    """A narrower dense model, which nothing can be cut for, with the same teacher."""
    taught = {"row": f"{narrow.row}, distilled", "source": dense.name, "lessons": Lessons()}
    return narrow.model_copy(update=taught)


# What rates are chosen by: few enough steps that all that is compared can have a search of its own.
_SEARCH = {"steps": 300, "warmup_steps": 50, "evaluate_every": 150}
_Rates = tuple[tuple[bool, float], ...]  # whether by fan-in, and the rate
_RANDOM_RATES: _Rates = ((True, LEARNING_RATE), (False, _ONE_RATE))
_NARROW_RATES: _Rates = ((False, LEARNING_RATE), (False, _ONE_RATE))


def _searched(run: RunSetting, rates: _Rates) -> list[RunSetting]:
    """A run in few steps, once with each of the rates; all else is as in the run."""
    assert run.config is not None
    runs = []
    for by_fan_in, rate in rates:
        how = "" if run.design.family == "dense" else " by fan-in" if by_fan_in else " for all"
        row = f"{run.row}, {_SEARCH['steps']} steps at {rate}{how}"
        config = run.config.model_copy(update={**_SEARCH, "learning_rate": rate})
        changed = {"row": row, "config": config, "core_rates": by_fan_in, "ablation": True}
        runs.append(run.model_copy(update=changed))
    return runs


def _paper(_: int) -> list[RunSetting]:
    """The paper's hyper-parameters and initialisation, to the letter; 3e-4 is the learning rate of its code."""
    runs = []
    # One of every row first, since an interrupted study has its first runs.
    for seed, bonds in zip(_SEEDS, [(None, *_BONDS), (None, 8, 16), (None, 8, 16)], strict=True):
        for bond in bonds:
            design = Design() if bond is None else Design("paper", bond)
            config = TrainConfig(learning_rate=3e-4, seed=seed, evaluate_every=250)
            runs.append(RunSetting(row=str(design), design=design, initialization="paper", config=config, seed=seed))
    return runs


_OTHER_RATES = (3e-3, 1e-2)
# After 150 steps at χ=16 a validation loss of 1.838; 1.928 at 1e-3, 1.887 at 6e-3; with one rate for all cores 1.998,
# and 1.866 at 1e-2.
_TUNING = TrainConfig(steps=500, learning_rate=3e-3, warmup_steps=50, evaluate_every=100)
# Rates by fan-in are up to 128 times the dense one in low rank of these sizes, and no good: after 300 steps a loss of
# 2.788 and 2.522, 2.459 and 2.273 with one rate of 0.015 for all. At χ=16's size neither is better (2.211 and 2.201),
# so both have all their steps; at χ=32's it is 2.020 and 2.165.
_THIN = (4, 8)


def _best(vocab_size: int) -> list[RunSetting]:
    """This library's initialisation; random starts, TT-SVD with and without tuning, and every control."""

    def trained(row: str, design: Design, seed: int, rate: float | None = None, **other: Any) -> RunSetting:
        thin = design.family == "low rank" and design.max_bond in _THIN
        rate = rate or (_ONE_RATE if thin else LEARNING_RATE)
        config = TrainConfig(learning_rate=rate, seed=seed, evaluate_every=250)
        by_fan_in = design.family != "dense" and not thin
        return RunSetting(row=row, design=design, config=config, seed=seed, **{"core_rates": by_fan_in, **other})

    # In order of interest, since an interrupted study has its first runs.
    runs = [trained("dense", Design(), _SEEDS[0])]
    for bond in _BONDS:
        runs += _decomposed(bond, runs[0], _TUNING)
    # What tuning makes of a random start, beside what it makes of the dense weights.
    for bond in _BONDS:
        row, design = f"χ={bond}, {_TUNING.steps} steps", Design("paper", bond)
        runs.append(RunSetting(row=row, design=design, core_rates=True, config=_TUNING))
    runs += [trained(f"χ={bond}", Design("paper", bond), _SEEDS[0]) for bond in (16, 8, 4, 32)]
    narrow_runs = {}
    for bond in (16, 8, 4, 32):
        runs += [trained(str(Design(family, bond)), Design(family, bond), _SEEDS[0]) for family in _FAMILIES]
        narrow = _equal_width(bond, vocab_size)
        narrow_runs[bond] = trained(f"{narrow} as χ={bond}", narrow, _SEEDS[0])
        runs.append(narrow_runs[bond])
    # What is the most that can be had at this size.
    families: tuple[Family, ...] = ("skewed", "paper", "low rank")
    runs += [_taught(Design(family, 16), runs[0]) for family in families]
    runs.append(_taught_narrow(narrow_runs[16], runs[0]))
    for seed in _SEEDS[1:]:
        runs.append(trained("dense", Design(), seed))
        runs += [trained(f"χ={bond}", Design("paper", bond), seed) for bond in (16, 8)]
    for design in (Design(), Design("paper", 16)):
        runs += [trained(f"{design}, rate {rate}", design, _SEEDS[0], rate, ablation=True) for rate in _OTHER_RATES]
    one_rate = {"core_rates": False, "ablation": True}
    runs.append(trained("χ=16, one rate for all", Design("paper", 16), _SEEDS[0], **one_rate))
    low_rank = Design("low rank", 16)
    runs.append(trained(f"{low_rank}, rate {_ONE_RATE} for all", low_rank, _SEEDS[0], _ONE_RATE, **one_rate))
    by_row = {run.row: run for run in reversed(runs)}
    for row in ("skewed as χ=16, TT-SVD, distilled", "χ=16, TT-SVD, distilled"):
        lower = _TAUGHT.model_copy(update={"learning_rate": _OTHER_RATES[0]})
        changed = {"row": f"{row}, rate {lower.learning_rate}", "config": lower, "ablation": True}
        runs.append(by_row[row].model_copy(update=changed))
    taught_rates: dict[str, _Rates] = {
        "low rank as χ=16, TT-SVD": ((True, 3e-3), (False, 6e-3), (False, _ONE_RATE), (False, 3e-2)),
        "skewed as χ=16, TT-SVD": ((True, 3e-3), (True, 6e-3), (False, 6e-3), (False, _ONE_RATE)),
        narrow_runs[16].row: _NARROW_RATES,
    }
    for row, rates in taught_rates.items():
        runs += _searched(by_row[f"{row}, distilled"], rates)
    for bond in _BONDS:
        for row in (f"low rank as χ={bond}", f"χ={bond}"):
            runs += _searched(by_row[row], _RANDOM_RATES)
        runs += _searched(narrow_runs[bond], _NARROW_RATES)
    return runs


def _quick(vocab_size: int) -> list[RunSetting]:
    """Every kind of run in a few steps: shows that all of it works, and nothing about quality."""
    config = TrainConfig(steps=6, batch_size=2, warmup_steps=2, evaluate_every=3)
    dense = RunSetting(row="dense", design=Design(), config=config)
    width = _equal_width(4, vocab_size)
    narrow = RunSetting(row=f"{width} as χ=4", design=width, config=config)
    return [
        dense,
        *_decomposed(4, dense, config),
        RunSetting(row="χ=4", design=Design("paper", 4), initialization="paper", config=config),
        *(
            RunSetting(row=str(Design(family, 4)), design=Design(family, 4), core_rates=True, config=config)
            for family in _FAMILIES
        ),
        RunSetting(
            row="χ=4, rates by fan-in",
            design=Design("paper", 4),
            initialization="paper",
            core_rates=True,
            ablation=True,
            config=config,
        ),
        _taught(Design("paper", 4), dense).model_copy(update={"config": config}),
        narrow,
        _taught_narrow(narrow, dense),
    ]


PRESETS = {"quick": _quick, "paper": _paper, "best": _best}


def preset(name: str, vocab_size: int) -> list[RunSetting]:
    """The runs of a preset, in order.

    Raises:
        SpecError: an unknown name.

    Example:
        >>> [run.name for run in preset("quick", 65)][:2]
        ['dense-seed42', 'chi4-TT-SVD-seed42']
    """
    if name not in PRESETS:
        raise SpecError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name](vocab_size)
