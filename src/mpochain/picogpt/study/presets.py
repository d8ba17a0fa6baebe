"""Which runs the study has: a preset is a list of them."""

from __future__ import annotations

from mpochain.errors import SpecError
from mpochain.picogpt.design import Design, Family
from mpochain.picogpt.model import build, narrow_width
from mpochain.picogpt.size import parameter_count
from mpochain.picogpt.study.settings import RunSetting
from mpochain.picogpt.study.variations import Rates, at_rates, cut_from, taught_by, with_rates
from mpochain.picogpt.training import LEARNING_RATE
from mpochain.train import TrainConfig

__all__ = ["PRESETS", "preset"]

_BONDS = (4, 8, 16, 32)
_SEEDS = (42, 43, 44)
_FAMILIES: tuple[Family, ...] = ("low rank", "skewed")

_BY_FAN_IN: Rates = (True, LEARNING_RATE)
_ONE_RATE: Rates = (False, 1.5e-2)
# What all with a random start are tried at, and what is more than that: dense and narrow models have no cores.
_TRIED = (_BY_FAN_IN, (True, 1.5e-2), _ONE_RATE)
_TRIED_DENSE = ((False, LEARNING_RATE), _ONE_RATE, (False, 3e-2))


# The narrower a dense model, the higher the rate it wants: up to each width its rate, beyond them the usual one.
_RATES_BY_WIDTH = {32: 3e-2, 48: 1.5e-2}


def _rates(design: Design) -> Rates:
    """The best of what was tried, which the page shows beside each other."""
    if design.family == "dense":
        return False, next((rate for width, rate in _RATES_BY_WIDTH.items() if design.width <= width), LEARNING_RATE)
    # By fan-in, cores of low rank would learn at up to 128 times the dense rate.
    return _ONE_RATE if design.family == "low rank" and design.max_bond != 32 else _BY_FAN_IN


def _trained(row: str, design: Design, seed: int = _SEEDS[0]) -> RunSetting:
    by_fan_in, rate = _rates(design)
    config = TrainConfig(learning_rate=rate, seed=seed, evaluate_every=250)
    return RunSetting(row=row, design=design, core_rates=by_fan_in, config=config, seed=seed)


def _equal_width(max_bond: int, vocab_size: int) -> Design:
    parameters = parameter_count(build(max_bond, vocab_size=vocab_size, seed=0))
    return Design(width=narrow_width(parameters, vocab_size))


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


# Of few steps, where the dense weights were kept nearly whole; see the page for others.
_TUNED: Rates = (True, 3e-3)
_TUNING = TrainConfig(steps=500, learning_rate=_TUNED[1], warmup_steps=50, evaluate_every=100)


def _best(vocab_size: int) -> list[RunSetting]:
    """This library's initialisation; random starts, starts from trained weights, every control, and all searches."""
    dense = _trained("dense", Design())
    chains = {bond: _trained(f"χ={bond}", Design("paper", bond)) for bond in (16, 8, 4, 32)}
    controls = {
        bond: {family: _trained(str(Design(family, bond)), Design(family, bond)) for family in _FAMILIES}
        for bond in chains
    }
    narrow = {bond: _trained(f"{(design := _equal_width(bond, vocab_size))} as χ={bond}", design) for bond in chains}
    # What is the most that can be had at one size. With a teacher, the narrow model is better at the higher rate.
    of_one_size = {"skewed": controls[16]["skewed"], "paper": chains[16], "low rank": controls[16]["low rank"]}
    of_one_size["narrow"] = with_rates(narrow[16], _ONE_RATE)
    taught = {name: taught_by(dense, run) for name, run in of_one_size.items()}
    fitted = {
        (family, bond): _tuned(cut_from(dense, Design(family, bond), "calibrated", _TUNING))
        for bond in _BONDS
        for family in ("paper", *_FAMILIES)
    }
    by_weights = {bond: _tuned(cut_from(dense, Design("paper", bond), "tt_svd", _TUNING)) for bond in _BONDS}
    # What tuning makes of a random start, beside what it makes of the dense weights.
    brief = {
        bond: _tuned([RunSetting(row=f"χ={bond}, {_TUNING.steps} steps", design=Design("paper", bond), config=_TUNING)])
        for bond in _BONDS
    }

    # In order of interest, since an interrupted study has its first runs.
    runs = [dense]
    for tuned in (*by_weights.values(), *brief.values()):
        runs += tuned
    runs += chains.values()
    for bond in chains:
        runs += [*controls[bond].values(), narrow[bond]]
    for tuned in fitted.values():
        runs += tuned
    runs += taught.values()
    runs.append(taught_by(dense, with_rates(chains[16], (True, 3e-3)), "calibrated"))
    for seed in _SEEDS[1:]:
        runs.append(_trained("dense", Design(), seed))
        runs += [_trained(f"χ={bond}", Design("paper", bond), seed) for bond in (16, 8)]

    # Where few steps cannot tell, or could mislead.
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
        for tuned in (by_weights[bond], brief[bond]):
            runs += at_rates(tuned[-1], [_TUNED])
    runs += at_rates(fitted["paper", 16][1], [_TUNED, _BY_FAN_IN])
    runs += at_rates(fitted["skewed", 16][1], [_TUNED])
    runs += at_rates(fitted["low rank", 16][1], [_TUNED, _ONE_RATE])
    runs += at_rates(fitted["low rank", 32][1], [_ONE_RATE])
    runs += at_rates(taught["low rank"], [(True, 3e-3), (False, 6e-3), _ONE_RATE, (False, 3e-2)], briefly=True)
    runs += at_rates(taught["skewed"], [(True, 3e-3), _BY_FAN_IN, (False, 6e-3), _ONE_RATE], briefly=True)
    runs += at_rates(taught["narrow"], _TRIED_DENSE, briefly=True)
    for bond in _BONDS:
        runs += at_rates(controls[bond]["low rank"], _TRIED, briefly=True)
        runs += at_rates(chains[bond], _TRIED, briefly=True)
        runs += at_rates(narrow[bond], _TRIED_DENSE, briefly=True)
    return runs


def _tuned(runs: list[RunSetting]) -> list[RunSetting]:
    """Runs of which the last is brief, at the best of what was tried for its shape at χ=16 and 32.

    Where little was lost, low rates are better.
    """
    *before, brief = runs
    rates = _TUNED if brief.design.max_bond == 32 else (False, 6e-3) if brief.design.family == "low rank" else _ONE_RATE
    return [*before, with_rates(brief, rates)]


def _quick(vocab_size: int) -> list[RunSetting]:
    """Every kind of run in a few steps: shows that all of it works, and nothing about quality."""
    config = TrainConfig(steps=6, batch_size=2, warmup_steps=2, evaluate_every=3)
    dense = RunSetting(row="dense", design=Design(), config=config)
    chain = RunSetting(row="χ=4", design=Design("paper", 4), initialization="paper", config=config)
    width = _equal_width(4, vocab_size)
    narrow = RunSetting(row=f"{width} as χ=4", design=width, config=config)
    return [
        dense,
        *cut_from(dense, Design("paper", 4), "tt_svd", config),
        *cut_from(dense, Design("low rank", 4), "calibrated", config)[1:],
        chain,
        *(
            RunSetting(row=str(Design(family, 4)), design=Design(family, 4), core_rates=True, config=config)
            for family in _FAMILIES
        ),
        *at_rates(chain, [(True, config.learning_rate)]),
        taught_by(dense, chain),
        narrow,
        taught_by(dense, narrow),
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
