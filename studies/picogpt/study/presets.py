"""Presets of the study: lists of runs in order of execution."""

from __future__ import annotations

from mpochain.errors import ArgumentError
from mpochain.train import TrainConfig
from studies.picogpt.design import Design, Family
from studies.picogpt.model import build, narrow_width
from studies.picogpt.size import parameter_count
from studies.picogpt.study.settings import RunSetting
from studies.picogpt.study.variations import Rates, at_rates, cut_from, taught_by, with_rates
from studies.picogpt.training import LEARNING_RATE

__all__ = ["PRESETS", "preset"]

_BONDS = (4, 8, 16, 32)
_SEEDS = (42, 43, 44)
_FAMILIES: tuple[Family, ...] = ("low rank", "skewed")

_BY_FAN_IN: Rates = (True, LEARNING_RATE)
_ONE_RATE: Rates = (False, 1.5e-2)
# Rates tried in the searches from a random start; dense and narrow models have no cores.
_TRIED = (_BY_FAN_IN, (True, 1.5e-2), _ONE_RATE)
_TRIED_DENSE = ((False, LEARNING_RATE), _ONE_RATE, (False, 3e-2))


# Narrower dense models have higher best rates: rate by maximum width. Wider models use LEARNING_RATE.
_RATES_BY_WIDTH = {32: 3e-2, 48: 1.5e-2}


def _rates(design: Design) -> Rates:
    """Best rates found by the searches, which the page compares with the others."""
    if design.family == "dense":
        return False, next((rate for width, rate in _RATES_BY_WIDTH.items() if design.width <= width), LEARNING_RATE)
    # Scaled by fan-in, low-rank cores would learn at up to 128 times the dense rate.
    return _ONE_RATE if design.family == "low rank" and design.max_bond != 32 else _BY_FAN_IN


def _trained(design: Design, bond: int | None = None, seed: int = _SEEDS[0]) -> RunSetting:
    by_fan_in, rate = _rates(design)
    config = TrainConfig(learning_rate=rate, seed=seed, evaluate_every=250)
    return RunSetting(design=design, bond=bond, core_rates=by_fan_in, config=config, seed=seed)


def _papers(bond: int, seed: int = _SEEDS[0]) -> RunSetting:
    return _trained(Design("paper", bond), bond, seed)


def _equal_width(max_bond: int, vocab_size: int) -> Design:
    parameters = parameter_count(build(max_bond, vocab_size=vocab_size, seed=0))
    return Design(width=narrow_width(parameters, vocab_size))


def _paper(_: int) -> list[RunSetting]:
    """Runs with the paper's hyperparameters and initialisation; 3e-4 is the learning rate of its code."""
    runs = []
    # One seed of every row comes first, so that an interrupted study has all rows.
    for seed, bonds in zip(_SEEDS, [(None, *_BONDS), (None, 8, 16), (None, 8, 16)], strict=True):
        for bond in bonds:
            design = Design() if bond is None else Design("paper", bond)
            config = TrainConfig(learning_rate=3e-4, seed=seed, evaluate_every=250)
            runs.append(RunSetting(design=design, bond=bond, initialization="paper", config=config, seed=seed))
    return runs


# Rates for finetuning after a decomposition with a small error; the page shows others.
_FINETUNED: Rates = (True, 3e-3)
_FINETUNING = TrainConfig(steps=500, learning_rate=_FINETUNED[1], warmup_steps=50, evaluate_every=100)


def _best(vocab_size: int) -> list[RunSetting]:
    """Runs with this library's initialisation: random starts, starts from trained weights, controls and searches."""
    dense = _trained(Design())
    chains = {bond: _papers(bond) for bond in (16, 8, 4, 32)}
    controls = {bond: {family: _trained(Design(family, bond), bond) for family in _FAMILIES} for bond in chains}
    narrow = {bond: _trained(_equal_width(bond, vocab_size), bond) for bond in chains}
    # The best run of each shape at one size. With a teacher, the narrow model is better at the higher rate.
    of_one_size = {"skewed": controls[16]["skewed"], "paper": chains[16], "low rank": controls[16]["low rank"]}
    of_one_size["narrow"] = with_rates(narrow[16], _ONE_RATE)
    taught = {name: taught_by(dense, run) for name, run in of_one_size.items()}
    fitted = {
        (family, bond): _finetuned(cut_from(dense, Design(family, bond), "calibrated", _FINETUNING))
        for bond in _BONDS
        for family in ("paper", *_FAMILIES)
    }
    by_weights = {bond: _finetuned(cut_from(dense, Design("paper", bond), "tt_svd", _FINETUNING)) for bond in _BONDS}
    # The same number of steps from a random start, to compare with starts from dense weights.
    brief = {
        bond: _finetuned([RunSetting(design=Design("paper", bond), bond=bond, kind="finetuned", config=_FINETUNING)])
        for bond in _BONDS
    }

    # The most interesting runs come first, in case the study is interrupted.
    runs = [dense]
    for finetuned in (*by_weights.values(), *brief.values()):
        runs += finetuned
    runs += chains.values()
    for bond in chains:
        runs += [*controls[bond].values(), narrow[bond]]
    for finetuned in fitted.values():
        runs += finetuned
    runs += taught.values()
    runs.append(taught_by(dense, with_rates(chains[16], (True, 3e-3)), "calibrated"))
    for seed in _SEEDS[1:]:
        runs.append(_trained(Design(), seed=seed))
        runs += [_papers(bond, seed) for bond in (16, 8)]

    # Full-length runs for rates that short searches cannot decide or could get wrong.
    runs += at_rates(dense, [(False, 3e-3), (False, 1e-2)])
    runs += at_rates(chains[16], [(True, 3e-3), (True, 1e-2), (False, LEARNING_RATE)])
    runs += at_rates(chains[32], [_ONE_RATE])
    runs += at_rates(controls[16]["low rank"], [_BY_FAN_IN])
    runs += at_rates(controls[32]["low rank"], [_ONE_RATE])
    runs += at_rates(narrow[4], [(False, LEARNING_RATE), _ONE_RATE])
    runs += at_rates(narrow[8], [(False, LEARNING_RATE), (False, 3e-2)])
    for bond in (16, 32):
        runs += at_rates(narrow[bond], [_ONE_RATE])
    runs += at_rates(taught["narrow"], [(False, LEARNING_RATE)])
    for run in (taught["skewed"], taught["paper"]):
        runs += at_rates(run, [(True, 3e-3)])
    for bond in (4, 8, 16):
        for finetuned in (by_weights[bond], brief[bond]):
            runs += at_rates(finetuned[-1], [_FINETUNED])
    runs += at_rates(fitted["paper", 16][1], [_FINETUNED, _BY_FAN_IN])
    runs += at_rates(fitted["skewed", 16][1], [_FINETUNED])
    runs += at_rates(fitted["low rank", 16][1], [_FINETUNED, _ONE_RATE])
    runs += at_rates(fitted["low rank", 32][1], [_ONE_RATE])
    runs += at_rates(taught["low rank"], [(True, 3e-3), (False, 6e-3), _ONE_RATE, (False, 3e-2)], briefly=True)
    runs += at_rates(taught["skewed"], [(True, 3e-3), _BY_FAN_IN, (False, 6e-3), _ONE_RATE], briefly=True)
    runs += at_rates(taught["narrow"], _TRIED_DENSE, briefly=True)
    for bond in _BONDS:
        runs += at_rates(controls[bond]["low rank"], _TRIED, briefly=True)
        runs += at_rates(chains[bond], _TRIED, briefly=True)
        runs += at_rates(narrow[bond], _TRIED_DENSE, briefly=True)
    return runs


def _finetuned(runs: list[RunSetting]) -> list[RunSetting]:
    """Return the runs, with the last one, the finetuning, at the best rates found for its shape at χ=16 and 32.

    Low rates are better after a decomposition with a small error.
    """
    *before, last = runs
    best = (False, 6e-3) if last.design.family == "low rank" else _ONE_RATE
    return [*before, with_rates(last, _FINETUNED if last.bond == 32 else best)]


def _quick(vocab_size: int) -> list[RunSetting]:
    """Every kind of run in a few steps: shows that everything works, and says nothing about quality."""
    config = TrainConfig(steps=6, batch_size=2, warmup_steps=2, evaluate_every=3)
    dense = RunSetting(design=Design(), config=config)
    chain = RunSetting(design=Design("paper", 4), bond=4, initialization="paper", config=config)
    narrow = RunSetting(design=_equal_width(4, vocab_size), bond=4, config=config)
    return [
        dense,
        *cut_from(dense, Design("paper", 4), "tt_svd", config),
        *cut_from(dense, Design("low rank", 4), "calibrated", config)[1:],
        chain,
        *(RunSetting(design=Design(family, 4), bond=4, core_rates=True, config=config) for family in _FAMILIES),
        *at_rates(chain, [(True, config.learning_rate)]),
        taught_by(dense, chain),
        narrow,
        taught_by(dense, narrow),
    ]


PRESETS = {"quick": _quick, "paper": _paper, "best": _best}


def preset(name: str, vocab_size: int) -> list[RunSetting]:
    """Return the runs of a preset, in order.

    Raises:
        ArgumentError: the name is unknown.

    Example:
        >>> [run.name for run in preset("quick", 65)][:2]
        ['dense-seed42', 'chi4-TT-SVD-seed42']
    """
    if name not in PRESETS:
        raise ArgumentError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name](vocab_size)
