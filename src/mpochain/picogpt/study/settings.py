"""What the study runs: a preset is a list of runs, each of them a value that fits into one line of JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

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

Start = Literal["random", "tt_svd", "calibrated"]

_CUT: dict[Start, str] = {"tt_svd": "TT-SVD", "calibrated": "calibrated"}


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


def _equal_width(max_bond: int, vocab_size: int) -> Design:
    parameters = parameter_count(build(max_bond, vocab_size=vocab_size, seed=0))
    return Design(width=narrow_width(parameters, vocab_size))


def _cut(design: Design, start: Start, dense: RunSetting, tuning: TrainConfig) -> list[RunSetting]:
    """Chains cut from a dense run, as they are and after tuning."""
    row = f"{design}, {_CUT[start]}"
    cut = RunSetting(row=row, design=design, start=start, source=dense.name, config=None)
    tuned = {"row": f"{row} and {tuning.steps} steps", "core_rates": True, "config": tuning}
    return [cut, cut.model_copy(update=tuned)]


_Rates = tuple[bool, float]  # whether cores learn by their fan-in, and the rate of dense weights
_BY_FAN_IN: _Rates = (True, LEARNING_RATE)
_ONE_RATE: _Rates = (False, 1.5e-2)
# What all with a random start are tried at, and what is more than that: dense and narrow models have no cores.
_TRIED = (_BY_FAN_IN, (True, 1.5e-2), _ONE_RATE)
_TRIED_DENSE = ((False, LEARNING_RATE), _ONE_RATE, (False, 3e-2))


# Up to this width dense models want more than wide ones, with all their steps; in few steps wider ones seem to as well.
_NARROW = 48


def _rates(design: Design) -> _Rates:
    """The best of what was tried, which the page shows beside each other."""
    if design.family == "dense":
        return _ONE_RATE if design.width <= _NARROW else (False, LEARNING_RATE)
    # By fan-in, cores of low rank would learn at up to 128 times the dense rate.
    return _ONE_RATE if design.family == "low rank" and design.max_bond != 32 else _BY_FAN_IN


def _trained(row: str, design: Design, seed: int = _SEEDS[0]) -> RunSetting:
    by_fan_in, rate = _rates(design)
    config = TrainConfig(learning_rate=rate, seed=seed, evaluate_every=250)
    return RunSetting(row=row, design=design, core_rates=by_fan_in, config=config, seed=seed)


def _with(run: RunSetting, rates: _Rates) -> RunSetting:
    """The same run at other rates."""
    assert run.config is not None
    by_fan_in, rate = rates
    return run.model_copy(
        update={"core_rates": by_fan_in, "config": run.config.model_copy(update={"learning_rate": rate})}
    )


def _taught(run: RunSetting, dense: RunSetting, start: Start = "tt_svd") -> RunSetting:
    """A run with as many steps as the dense one had, which teaches it, after what can be cut of it is its start."""
    cut = run.design.family != "dense"
    changed = {
        "row": f"{run.row}, {_CUT[start]}, distilled" if cut else f"{run.row}, distilled",
        "start": start if cut else "random",
        "source": dense.name,
        "lessons": Lessons(),
    }
    return run.model_copy(update=changed)


# What rates are chosen by: few enough steps that all that is compared can have a search of its own.
_SEARCH = {"steps": 300, "warmup_steps": 50, "evaluate_every": 150}


def _at(run: RunSetting, rates: Iterable[_Rates], *, briefly: bool = False) -> list[RunSetting]:
    """A run once with each of the rates, in few steps or all of its own; all else is as in the run."""
    runs = []
    for by_fan_in, rate in rates:
        how = "" if run.design.family == "dense" else " by fan-in" if by_fan_in else " for all"
        row = f"{run.row}, {_SEARCH['steps']} steps at {rate}{how}" if briefly else f"{run.row}, rate {rate}{how}"
        other = _with(run, (by_fan_in, rate))
        assert other.config is not None
        config = other.config.model_copy(update=_SEARCH if briefly else {})
        runs.append(other.model_copy(update={"row": row, "config": config, "ablation": True}))
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


# After 150 steps at χ=16 a validation loss of 1.838; 1.928 at 1e-3, 1.887 at 6e-3; with one rate for all cores 1.998,
# and 1.866 at 1e-2.
_TUNING = TrainConfig(steps=500, learning_rate=3e-3, warmup_steps=50, evaluate_every=100)


def _best(vocab_size: int) -> list[RunSetting]:
    """This library's initialisation; random starts, TT-SVD with and without tuning, and every control."""
    # In order of interest, since an interrupted study has its first runs.
    runs = [_trained("dense", Design())]
    for bond in _BONDS:
        runs += _cut(Design("paper", bond), "tt_svd", runs[0], _TUNING)
    # What tuning makes of a random start, beside what it makes of the dense weights.
    for bond in _BONDS:
        row, design = f"χ={bond}, {_TUNING.steps} steps", Design("paper", bond)
        runs.append(RunSetting(row=row, design=design, core_rates=True, config=_TUNING))
    chains = {bond: _trained(f"χ={bond}", Design("paper", bond)) for bond in (16, 8, 4, 32)}
    runs += chains.values()
    controls = {
        bond: {family: _trained(str(Design(family, bond)), Design(family, bond)) for family in _FAMILIES}
        for bond in chains
    }
    narrow = {bond: _trained(f"{(design := _equal_width(bond, vocab_size))} as χ={bond}", design) for bond in chains}
    for bond in chains:
        runs += [*controls[bond].values(), narrow[bond]]
    # The best that can be cut from trained weights in every shape, each at its rate.
    fitted = {}
    for bond in _BONDS:
        for family in ("paper", *_FAMILIES):
            cut, tuned = _cut(Design(family, bond), "calibrated", runs[0], _TUNING)
            fitted[family, bond] = _with(tuned, _ONE_RATE) if family == "low rank" else tuned
            runs += [cut, fitted[family, bond]]
    # What is the most that can be had at this size.
    of_one_size = {"skewed": controls[16]["skewed"], "paper": chains[16]}
    # With a teacher, the narrow model is better at the higher rate.
    of_one_size |= {"low rank": controls[16]["low rank"], "narrow": _with(narrow[16], _ONE_RATE)}
    taught = {name: _taught(run, runs[0]) for name, run in of_one_size.items()}
    runs += taught.values()
    runs.append(_taught(_with(chains[16], (True, 3e-3)), runs[0], "calibrated"))
    for seed in _SEEDS[1:]:
        runs.append(_trained("dense", Design(), seed))
        runs += [_trained(f"χ={bond}", Design("paper", bond), seed) for bond in (16, 8)]
    # Where few steps cannot tell, or could mislead.
    runs += _at(runs[0], [(False, 3e-3), (False, 1e-2)])
    runs += _at(chains[16], [(True, 3e-3), (True, 1e-2), (False, LEARNING_RATE)])
    runs += _at(chains[32], [_ONE_RATE])
    runs += _at(controls[16]["low rank"], [_BY_FAN_IN])
    runs += _at(controls[32]["low rank"], [_ONE_RATE])
    for bond in (4, 8):
        runs += _at(narrow[bond], [(False, LEARNING_RATE), (False, 3e-2)])
    for bond in (16, 32):
        runs += _at(narrow[bond], [_ONE_RATE])
    runs += _at(taught["narrow"], [(False, LEARNING_RATE)])
    for run in (taught["skewed"], taught["paper"]):
        runs += _at(run, [(True, 3e-3)])
    runs += _at(fitted["paper", 16], [_BY_FAN_IN, _ONE_RATE])
    runs += _at(fitted["low rank", 16], [(True, 3e-3), (False, 6e-3)])
    runs += _at(fitted["low rank", 32], [(True, 3e-3)])
    runs += _at(taught["low rank"], [(True, 3e-3), (False, 6e-3), _ONE_RATE, (False, 3e-2)], briefly=True)
    runs += _at(taught["skewed"], [(True, 3e-3), _BY_FAN_IN, (False, 6e-3), _ONE_RATE], briefly=True)
    runs += _at(taught["narrow"], _TRIED_DENSE, briefly=True)
    for bond in _BONDS:
        runs += _at(controls[bond]["low rank"], _TRIED, briefly=True)
        runs += _at(chains[bond], _TRIED, briefly=True)
        runs += _at(narrow[bond], _TRIED_DENSE, briefly=True)
    return runs


def _quick(vocab_size: int) -> list[RunSetting]:
    """Every kind of run in a few steps: shows that all of it works, and nothing about quality."""
    config = TrainConfig(steps=6, batch_size=2, warmup_steps=2, evaluate_every=3)
    dense = RunSetting(row="dense", design=Design(), config=config)
    chain = RunSetting(row="χ=4", design=Design("paper", 4), initialization="paper", config=config)
    width = _equal_width(4, vocab_size)
    narrow = RunSetting(row=f"{width} as χ=4", design=width, config=config)
    return [
        dense,
        *_cut(Design("paper", 4), "tt_svd", dense, config),
        *_cut(Design("low rank", 4), "calibrated", dense, config)[1:],
        chain,
        *(
            RunSetting(row=str(Design(family, 4)), design=Design(family, 4), core_rates=True, config=config)
            for family in _FAMILIES
        ),
        *_at(chain, [(True, config.learning_rate)]),
        _taught(chain, dense),
        narrow,
        _taught(narrow, dense),
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
