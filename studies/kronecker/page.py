"""Page of the Kronecker study: ``python studies/kronecker/page.py``.

Writes docs/results/kronecker.md and its figures from the records beside this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import write_bytes

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "kronecker.md"

_WEIGHTS = (
    Column("matrix", "matrices"),
    Column("count", "how many", "d"),
    Column("parameters", "parameters left", ".1%"),
    Column("svd", "SVD", ".4f"),
    Column("given order", "Kronecker, given order", ".4f"),
    Column("permuted", "Kronecker, searched order", ".4f"),
    Column("gain", "searched / given", ".4f"),
    Column("below", "matrices with a lower error"),
)
_OUTPUTS = (
    Column("matrix", "matrix"),
    Column("svd_llm", "SVD-LLM", ".3f"),
    Column("interpolative", "interpolative", ".3f"),
    Column("chain", "chain of skew 8, fitted", ".3f"),
    Column("given order", "given order", ".3f"),
    Column("permuted", "searched order", ".3f"),
    Column("given order, fitted", "given order, fitted", ".3f"),
    Column("permuted, fitted", "searched order, fitted", ".3f"),
    Column("best", "best"),
)
_RUNS = (
    Column("run", "run"),
    Column("stage", "stage"),
    Column("parameters", "parameters", ",d"),
    Column("tokens", "tokens of training", ",d"),
    Column("before", "before it", ".4g"),
    Column("after", "after it", ".4g"),
)

# The words of a matrix's name by which matrices are one kind.
_KINDS = {
    "smollm2": ("gate_proj", "up_proj", "down_proj"),
    "picogpt": ("w_1", "w_2", "w_q", "w_k", "w_v", "w_o"),
}
_ENDS = ("PicoGPT (loss)", "SmolLM2-135M (perplexity)")
# Ways to compress several groups of layers, as tables name them.
_STAGES, _AT_ONCE = "stages", "at-once"
_TITLES = {"smollm2": "SmolLM2-135M", "picogpt": "PicoGPT"}


def write_page(records: Path, page: Path) -> None:
    """The page of the records in a folder; what has not been measured yet is left out."""
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    preface = (
        "Made from records by a command (`python studies/kronecker/page.py`), not edited by hand. A sum of Kronecker "
        "products `A_r (x) B_r` after TQCompressor (arXiv 2401.16367): factors `B` of 4x2 and 2x4 with four terms, of "
        "2x2 with two for square matrices, so that half of the parameters are left; in the given order of rows and "
        "columns, and in one that was searched for. At equal parameters beside it low rank and chains."
    )
    blocks: list[Block] = [Text((preface,)), *_pays(records)]
    origins: list[dict[str, Any]] = []
    file = records / "planted.json"
    if file.exists():
        planted = json.loads(file.read_text())
        origins.append(planted["provenance"])
        blocks += _planted(planted)
    file = records / "layers.json"
    if file.exists():
        layers = json.loads(file.read_text())
        origins.append(layers["provenance"])
        blocks += _matrices(layers, figures / "kronecker-errors.png")
    blocks += _picogpt(records, origins) + _smollm2(records, origins)
    blocks += [Heading("Where it was made"), Text(origin(origins))]
    markdown = Page("Kronecker products: orders, data and stages", blocks).markdown(page.parent)
    write_bytes(page, markdown.encode())


def _pays(records: Path) -> list[Block]:
    """In which cases orders and stages pay, in a few lines."""
    lines = []
    file = records / "layers.json"
    if file.exists():
        layers = json.loads(file.read_text())
        matrices = [matrix for model in _TITLES for matrix in layers[model].values()]
        weights = [matrix["weight"] for matrix in matrices]
        outputs = [matrix["outputs"] for matrix in matrices if "outputs" in matrix]
        without_data = sum(errors["permuted"] < errors["given order"] for errors in weights)
        low = sum(errors["permuted"] < errors["svd"] for errors in weights)
        fitted = sum(errors["permuted, fitted"] < errors["given order, fitted"] for errors in outputs)
        best = sum(errors["permuted, fitted"] == min(errors.values()) for errors in outputs)
        lines += [
            "A searched order, against the given one: its error is lower for "
            f"{without_data} of {len(weights)} matrices without data; both fitted to data, for {fitted} of "
            f"{len(outputs)}.",
            "A searched order, against other forms of as many parameters: it is below plain SVD for "
            f"{low} of {len(weights)} matrices, and the best of all forms with data for {best} of {len(outputs)}. "
            "It pays where the form is to be a Kronecker product, and seldom where low rank would do.",
        ]
    ends = [_ends(_picogpt_runs(records), "loss"), _ends(_smollm2_runs(records).values(), "perplexity")]
    for title, by_way in zip(_ENDS, ends, strict=True):
        if len(by_way) == 2:
            stages, once = mean(by_way[_STAGES]), mean(by_way[_AT_ONCE])
            lines.append(
                f"Stages, against one shot with as many tokens: on {title} they "
                f"{'pay' if stages < once else 'do not pay'}, {stages:.4g} against {once:.4g}."
            )
    return [Heading("When does it pay?"), Text(tuple(lines))] if lines else []


def _way(run: Mapping[str, Any]) -> str:
    return _STAGES if len(run["stages"]) > 1 else _AT_ONCE


def _ends(runs: Iterable[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """By way, the last value of a metric of each run."""
    ends: dict[str, list[float]] = {}
    for run in runs:
        ends.setdefault(_way(run), []).append(run["stages"][-1]["after"][metric])
    return ends


def _picogpt_runs(records: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(records.glob("picogpt-*.json"))]


def _smollm2_runs(records: Path) -> dict[str, dict[str, Any]]:
    """By the name of the way, in the order of the table."""
    files = {way: records / f"smollm2-{way}.json" for way in (_STAGES, _AT_ONCE)}
    return {way: json.loads(file.read_text()) for way, file in files.items() if file.exists()}


def _planted(planted: dict[str, Any]) -> list[Block]:
    searches = planted["found"]
    near = [search for search in searches if search["error"] < 0.01]
    seconds = sorted(search["seconds"] for search in searches)
    return [
        Heading("Is a hidden order found?"),
        Text(
            (
                f"Sums of four random products, {planted['spec']}, rows and columns shuffled: an error below 1 % in "
                f"{len(near)} of {len(searches)} seeds, in {seconds[0]:.0f} to {seconds[-1]:.0f} s, half of them "
                f"within {seconds[len(seconds) // 2]:.0f} s.",
            )
        ),
    ]


def _matrices(layers: dict[str, Any], figure: Path) -> list[Block]:
    blocks: list[Block] = [
        Heading("Does a better order pay?"),
        Text(
            (
                "Relative Frobenius errors of the weights, means over matrices. The search had "
                f"{layers['seconds']:.0f} s for each matrix.",
            )
        ),
    ]
    rows = []
    for model, kinds in _KINDS.items():
        for kind in kinds:
            matrices = [matrix for name, matrix in layers[model].items() if name.endswith(kind)]
            if matrices:
                rows.append(_row(f"{_TITLES[model]} {kind}", matrices))
    blocks.append(Table(_WEIGHTS, rows))
    smollm2 = layers["smollm2"]
    if smollm2:
        weights = [matrix["weight"] for matrix in smollm2.values()]
        below = sum(errors["permuted"] < errors["given order"] for errors in weights)
        gain = mean(1 - errors["permuted"] / errors["given order"] for errors in weights)
        low = sum(errors["svd"] < errors["permuted"] for errors in weights)
        blocks.append(
            Text(
                (
                    f"In SmolLM2 the searched order has the lower error for {below} of {len(smollm2)} MLP matrices, on "
                    f"average {gain:.1%} lower. Plain SVD of as many parameters is below even the searched order for "
                    f"{low} of them.",
                )
            )
        )
        series = []
        for kind in _KINDS["smollm2"]:
            points = {int(name.split(".")[2]): matrix for name, matrix in smollm2.items() if name.endswith(kind)}
            ratios = [points[k]["weight"]["permuted"] / points[k]["weight"]["given order"] for k in sorted(points)]
            series.append(Series(kind, sorted(points), ratios))
        draw(
            figure,
            series,
            title="Error in the searched order over that in the given order (lower is better)",
            x="block of SmolLM2-135M",
            y="ratio of relative errors",
        )
        blocks.append(Figure(figure, "Error in the searched order over that in the given order, by block"))
    fitted = [
        (f"{_TITLES[model]} {name}", matrix["outputs"])
        for model in ("smollm2", "picogpt")
        for name, matrix in layers[model].items()
        if "outputs" in matrix
    ]
    best = [min(errors, key=errors.__getitem__) for _, errors in fitted]
    forms = {column.key: column.title for column in _OUTPUTS}
    wins = {forms[form]: best.count(form) for form in dict.fromkeys(best)}
    blocks += [
        Heading("With calibration data"),
        Text(
            (
                "Relative errors of the outputs on the calibration text, at equal parameters. Orders are those of the "
                f"search without data; fitted means {layers['iterations']} iterations of L-BFGS on the outputs. Lowest "
                f"most often: {', '.join(f'{form} {count}' for form, count in wins.items())} of {len(fitted)}.",
            )
        ),
        Table(
            _OUTPUTS,
            [
                {"matrix": name, **errors, "best": forms[form]}
                for (name, errors), form in zip(fitted, best, strict=True)
            ],
        ),
    ]
    return blocks


def _row(label: str, matrices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    weights = [matrix["weight"] for matrix in matrices]
    return {
        "matrix": label,
        "count": len(matrices),
        "parameters": mean(matrix["parameters"] for matrix in matrices),
        **{form: mean(errors[form] for errors in weights) for form in ("svd", "given order", "permuted")},
        "gain": mean(errors["permuted"] / errors["given order"] for errors in weights),
        "below": f"{sum(errors['permuted'] < errors['given order'] for errors in weights)} of {len(matrices)}",
    }


def _picogpt(records: Path, origins: list[dict[str, Any]]) -> list[Block]:
    runs = _picogpt_runs(records)
    if not runs:
        return []
    origins += [run["provenance"] for run in runs]
    rows = [
        {
            "run": f"{_way(run)}, seed {run['seed']}",
            "stage": stage["name"],
            "parameters": stage["parameters"],
            "tokens": stage["tokens"],
            "before": stage["before"]["loss"],
            "after": stage["after"]["loss"],
        }
        for run in runs
        for stage in run["stages"]
    ]
    tokens = {_way(run): [stage["tokens"] for stage in run["stages"]] for run in runs}
    return [
        Heading("In stages or at once: PicoGPT"),
        Text(
            (
                "Loss on the whole validation split, nats per character. The same layers become Kronecker sums in a "
                "searched order; the teacher is the dense model of the PicoGPT study.",
                _verdict(_ends(runs, "loss"), "loss", tokens),
            )
        ),
        Table(_RUNS, rows),
    ]


def _smollm2(records: Path, origins: list[dict[str, Any]]) -> list[Block]:
    runs = _smollm2_runs(records)
    if not runs:
        return []
    origins += [run["provenance"] for run in runs.values()]
    first = next(iter(runs.values()))
    rows = [
        {
            "run": way,
            "stage": stage["name"],
            "parameters": run["parameters"]["after"],
            "tokens": stage["training"]["tokens"],
            "before": stage["before"]["perplexity"],
            "after": stage["after"]["perplexity"],
        }
        for way, run in runs.items()
        for stage in run["stages"]
    ]
    tokens = {way: [stage["training"]["tokens"] for stage in run["stages"]] for way, run in runs.items()}
    return [
        Heading("In stages or at once: SmolLM2-135M"),
        Text(
            (
                f"Perplexity on {first['dense']['tokens']:,} tokens of "
                f"{Path(first['recipe']['evaluation']['text']).name}; dense {first['dense']['perplexity']:.2f} with "
                f"{first['parameters']['before']:,} parameters. The embedding is split twice by 1x2, the MLPs of every "
                "other block become sums of four Kronecker products; parameters are those at the end.",
                _verdict(_ends(runs.values(), "perplexity"), "perplexity", tokens),
            )
        ),
        Table(_RUNS, rows),
    ]


def _verdict(ends: Mapping[str, Sequence[float]], metric: str, tokens: Mapping[str, Sequence[int]]) -> str:
    """Which way ends lower, by the means over seeds, and how the two differ."""
    if not {_STAGES, _AT_ONCE} <= ends.keys():
        return "Only one of both ways has been run."
    stages, once = mean(ends[_STAGES]), mean(ends[_AT_ONCE])
    word = "lower" if stages < once else "not lower"
    runs, of_stages = len(ends[_STAGES]), tokens[_STAGES]
    return (
        f"After the same number of tokens the {metric} in stages is {word}: {stages:.4g} against {once:.4g} at once, "
        f"over {runs} seed{'s' * (runs > 1)}. In stages what is made smaller last has learnt from "
        f"{of_stages[-1] / sum(of_stages):.0%} of the tokens, and the rate falls to zero in each; at once everything "
        "learns from all of them."
    )


if __name__ == "__main__":
    write_page(HERE, PAGE)
    print(PAGE)
