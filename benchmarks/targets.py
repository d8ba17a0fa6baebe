"""Performance targets of the library, met or missed, computed from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ratios import Record, geometric_mean, median, over_autograd, over_best_peer, ratio
from regret_tables import is_long, over_all, over_plans

# Two runs of the same code may differ by this factor.
_EQUAL = 1 / 1.05

_SHORT_SECONDS = 50e-6
_LARGE_FLOPS = 5e7
_MEMORY_BYTES = 64 << 20

Groups = Mapping[str, list[Record]]


@dataclass(frozen=True)
class Target:
    """Performance target with its measurement.

    Attributes:
        text: description of the target.
        measured: measured value, or a note that the grid lacks it.
        met: whether the target is met; None if the grid lacks it.
        missed: cells that miss the target, worst first.
    """

    text: str
    measured: str
    met: bool | None
    missed: tuple[str, ...] = ()


def _absent(text: str) -> Target:
    return Target(text, "not in this grid", None)


def _at_least(text: str, values: Mapping[str, float | None], least: float, show: Callable[[float], str]) -> Target:
    """Target that the value of every cell is at least ``least``."""
    known = {cell: value for cell, value in values.items() if value is not None}
    if not known:
        return _absent(text)
    missed = sorted((cell for cell, value in known.items() if value < least), key=known.__getitem__)
    worst = min(known.values())
    return Target(
        text,
        f"{len(known) - len(missed)} of {len(known)} cells, worst {show(worst)}",
        not missed,
        tuple(f"{cell} ({show(known[cell])})" for cell in missed),
    )


def _at_most(text: str, values: Mapping[str, float | None], most: float, show: Callable[[float], str]) -> Target:
    """Target that the value of every cell is at most ``most``."""
    less = {cell: None if value is None else -value for cell, value in values.items()}
    return _at_least(text, less, -most, lambda value: show(-value))


def _mean(text: str, values: list[float | None], least: float) -> Target:
    mean = geometric_mean(values)
    if mean is None:
        return _absent(text)
    count = sum(value is not None for value in values)
    return Target(text, f"{mean:.2f}x over {count} cells", mean >= least)


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def _inference(cells: list[Record]) -> list[Target]:
    long, short = (
        [cell for cell in cells if (median(cell, "dense") > _SHORT_SECONDS) is long] for long in (True, False)
    )
    dense_kept = [cell for cell in short if cell["plans"]["fast"]["rebuilds"]]
    shares = {}
    for cell in cells:
        plan = cell["plans"]["compact"]
        fewer = plan["dense_macs"] / plan["macs"]
        if fewer > 1 and 2 * plan["dense_macs"] >= _LARGE_FLOPS:
            shares[cell["cell"]] = ratio(cell, "dense") / fewer
    return [
        _at_least(
            "Compact inference is as fast as the best peer in every cell (5 % tolerance)",
            {cell["cell"]: over_best_peer(cell) for cell in cells},
            _EQUAL,
            _times,
        ),
        _mean(
            "Compact inference, geometric mean over tltorch factorized: at least 4x",
            [ratio(cell, "tltorch factorized") for cell in cells],
            4.0,
        ),
        _mean(
            "Compact inference, geometric mean over the best peer of each cell: at least 1.5x",
            [over_best_peer(cell) for cell in cells],
            1.5,
        ),
        _at_least(
            "Fast inference is no slower than dense where dense takes over 50 µs (5 % tolerance)",
            {cell["cell"]: ratio(cell, "dense", "fast") for cell in long},
            _EQUAL,
            _times,
        ),
        _at_most(
            "Fast inference by the kept dense matrix is within 3 µs of dense where dense takes up to 50 µs",
            {cell["cell"]: median(cell, "fast") - median(cell, "dense") for cell in dense_kept},
            3e-6,
            _micro,
        ),
        _at_least(
            "A compact plan with k times fewer multiply-adds than dense is at least 0.75 k times as fast, in cells of "
            "at least 0.05 GFLOP (shown: share of k)",
            shares,
            0.75,
            lambda value: f"{value:.2f}",
        ),
    ]


def _named(records: list[Record], name: str, least: float) -> Target:
    cell = next((record for record in records if record["cell"] == name), None)
    text = f"{name}: compact at least {least:g}x over dense"
    gain = ratio(cell, "dense") if cell else None
    return _absent(text) if gain is None else Target(text, _times(gain), gain >= least)


def _training(cells: list[Record]) -> list[Target]:
    return [
        _at_least(
            "A training step is no slower than the better of rebuild and plain chain (5 % tolerance)",
            {cell["cell"]: over_autograd(cell) for cell in cells},
            _EQUAL,
            _times,
        ),
        _mean(
            "Training step, geometric mean over tltorch factorized: at least 2x",
            [ratio(cell, "tltorch factorized") for cell in cells],
            2.0,
        ),
    ]


def memory_over(record: Record) -> int:
    """Bytes of the chain's training step beyond inputs, outputs, gradients and the rebuilt dense weight, if any."""
    rebuilds = record["plans"]["compact"]["rebuilds"]
    return record["beyond"]["compact"] - (record["dense_and_gradient"] if rebuilds else 0)


def _small_costs(groups: Groups) -> list[Target]:
    planning = groups.get("planning", [])
    return [
        _at_most(
            "A training step of the chain takes at most 64 MiB beside inputs, outputs and gradients (and the dense "
            "weight with its gradient where it rebuilds)",
            {record["cell"]: memory_over(record) for record in groups.get("memory", [])},
            _MEMORY_BYTES,
            lambda value: f"{value / 2**20:.1f} MiB",
        ),
        _at_most(
            "A forward pass takes at most 6 µs beyond its products",
            {
                record["cell"]: median(record, "layer") - median(record, "products")
                for record in groups.get("dispatch", [])
            },
            6e-6,
            _micro,
        ),
        _at_most(
            "Planning a new shape takes at most 50 ms (shown: slowest of all shapes)",
            {record["cell"]: record["maximum"] for record in planning},
            50e-3,
            lambda value: f"{value * 1e3:.1f} ms",
        ),
    ]


def _lookup(records: list[Record]) -> list[Target]:
    chains = [record for record in records if record["form"].startswith("MPO")]
    return [
        _at_most(
            "Look-up of 4,096 tokens of a 50,257x768 table held as a chain of bond 16 or less: at most 2x nn.Embedding",
            {record["cell"]: median(record, "rows") / median(record, "dense") for record in chains},
            2.0,
            _times,
        ),
        _at_most(
            "Look-up takes less than 1 % of the dense table beyond the rows, in every form",
            {record["cell"]: record["beyond"] / record["table"] for record in records},
            0.01,
            lambda value: f"{value:.2%}",
        ),
    ]


def _decomposition(records: list[Record]) -> list[Target]:
    record = next((record for record in records if record["cell"] == "3072x3072 2 sites χ=64"), None)
    checked = []
    # The error of the exact SVD is the optimum; "the same error" allows only for rounding.
    for method, least, most, label in (
        ("gram", 4.0, 1e-4, "at the same error"),
        ("randomized", 25.0, 0.01, "within 1 % of the optimal error"),
    ):
        text = f"3072x3072, χ=64: {method} at least {least:g}x over TensorLy {label}"
        gain = ratio(record, "TensorLy", method) if record else None
        if record is None or gain is None:
            checked.append(_absent(text))
            continue
        above = record["above_exact"][method]
        checked.append(Target(text, f"{gain:.1f}x, error {above:+.2%}", gain >= least and above <= most))
    return checked


def _models(records: list[Record]) -> list[Target]:
    record = next((record for record in records if record["cell"] == "SmolLM2-135M, float32"), None)
    checked = []
    for kind, label, share, most in (
        ("prefill", "prefill", 60, 0.75),
        ("token", "one token", 60, 0.80),
        ("prefill", "prefill", 80, 0.90),
        ("token", "one token", 80, 0.92),
    ):
        text = f"SmolLM2-135M, float32, at {share} %: {label} at most {most} of dense in fast execution"
        if record is None:
            checked.append(_absent(text))
            continue
        timings = record["timings"][kind]
        found = timings[f"{share} %, cached"]["median"] / timings["dense"]["median"]
        checked.append(Target(text, f"{found:.2f}", found <= most))
    return checked


def _regret(records: list[Record]) -> list[Target]:
    if not records:
        return [_absent("The default plan after ten calls, over the best of all plans")]
    mean = geometric_mean(over_plans(record) for record in records)
    assert mean is not None
    long = {record["cell"]: record for record in records if is_long(record)}
    worst = "The default plan after ten calls, at most 1.15 times the best of all plans{}, where that takes over 100 µs"
    return [
        Target(
            "The default plan after ten calls, over the best of all plans: geometric mean at most 1.05",
            f"{mean:.3f} over {len(records)} cells",
            mean <= 1.05,
        ),
        _at_most(worst.format(""), {name: over_plans(record) for name, record in long.items()}, 1.15, _times),
        _at_most(worst.format(" and dense"), {name: over_all(record) for name, record in long.items()}, 1.15, _times),
    ]


def targets(groups: Groups) -> list[Target]:
    """All targets, from float32 ratios within one run; missed targets first, those that the grid lacks last."""
    forward, training = (
        [cell for cell in groups.get(group, []) if cell["dtype"] == "float32"] for group in ("forward", "training")
    )
    checked = [
        *_inference(forward),
        _named(forward, "4096x4096 2 sites χ=4 batch=1024", 6.0),
        _named(forward, "4096x4096 2 sites χ=4 batch=1", 25.0),
        _named(forward, "4096x4096 2 sites skewed χ=16 batch=2048", 10.0),
        *_training(training),
        *_small_costs(groups),
        *_decomposition(groups.get("decomposition", [])),
        *_lookup(groups.get("lookup", [])),
        *_models(groups.get("models", [])),
        *_regret(groups.get("regret", [])),
    ]
    return sorted(checked, key=lambda target: {False: 0, True: 1, None: 2}[target.met])
