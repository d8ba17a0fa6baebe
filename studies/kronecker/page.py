"""Page of the Kronecker study: ``python studies/kronecker/page.py``.

Writes docs/results/kronecker.md and its figures from the records beside this file alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    made = Page("Kronecker products: orders, data and stages", blocks)
    write_bytes(page, made.markdown(page.parent).encode())


def _pays(records: Path) -> list[Block]:
    """In which cases, in a few lines."""
    lines = []
    file = records / "layers.json"
    if file.exists():
        layers = json.loads(file.read_text())
        every = [each for model in _TITLES for each in layers[model].values()]
        weights = [each["weight"] for each in every]
        outputs = [each["outputs"] for each in every if "outputs" in each]
        given = sum(each["permuted"] < each["given order"] for each in weights)
        low = sum(each["permuted"] < each["svd"] for each in weights)
        fitted = sum(each["permuted, fitted"] < each["given order, fitted"] for each in outputs)
        best = sum(each["permuted, fitted"] == min(each.values()) for each in outputs)
        lines += [
            "A searched order, against the given one: its error is lower for "
            f"{given} of {len(weights)} matrices without data; both fitted to data, for {fitted} of {len(outputs)}.",
            "A searched order, against other forms of as many parameters: it is below plain SVD for "
            f"{low} of {len(weights)} matrices, and the best of all forms with data for {best} of {len(outputs)}. "
            "It pays where the form is to be a Kronecker product, and seldom where low rank would do.",
        ]
    ends = [_ends(records, "picogpt", "loss"), _ends(records, "smollm2", "perplexity")]
    for title, found in zip(_ENDS, ends, strict=True):
        if len(found) == 2:
            said = "pay" if found["stages"] < found["at-once"] else "do not pay"
            lines.append(
                f"Stages, against one shot with as many tokens: on {title} they {said}, "
                f"{found['stages']:.4g} against {found['at-once']:.4g}."
            )
    return [Heading("When does it pay?"), Text(tuple(lines))] if lines else []


def _ends(records: Path, model: str, what: str) -> dict[str, float]:
    """What runs in stages and at once end with, the mean over their seeds."""
    found: dict[str, list[float]] = {}
    for file in sorted(records.glob(f"{model}-*.json")):
        kind = "at-once" if "at-once" in file.name else "stages"
        found.setdefault(kind, []).append(json.loads(file.read_text())["stages"][-1]["after"][what])
    return {kind: mean(values) for kind, values in found.items()}


def _planted(planted: dict[str, Any]) -> list[Block]:
    found = planted["found"]
    near = [each for each in found if each["error"] < 0.01]
    seconds = sorted(each["seconds"] for each in found)
    return [
        Heading("Is a hidden order found?"),
        Text(
            (
                f"Sums of four random products, {planted['spec']}, rows and columns shuffled: an error below 1 % in "
                f"{len(near)} of {len(found)} seeds, in {seconds[0]:.0f} to {seconds[-1]:.0f} s, half of them within "
                f"{seconds[len(seconds) // 2]:.0f} s.",
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
            found = [each for name, each in layers[model].items() if name.endswith(kind)]
            if found:
                rows.append(_row(f"{_TITLES[model]} {kind}", found))
    blocks.append(Table(_WEIGHTS, rows))
    smollm2 = layers["smollm2"]
    if smollm2:
        below = sum(each["weight"]["permuted"] < each["weight"]["given order"] for each in smollm2.values())
        gain = mean(1 - each["weight"]["permuted"] / each["weight"]["given order"] for each in smollm2.values())
        low = sum(each["weight"]["svd"] < each["weight"]["permuted"] for each in smollm2.values())
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
            points = {int(name.split(".")[2]): each for name, each in smollm2.items() if name.endswith(kind)}
            ratios = [points[k]["weight"]["permuted"] / points[k]["weight"]["given order"] for k in sorted(points)]
            series.append(Series(kind, sorted(points), ratios))
        draw(
            figure,
            series,
            title="Error in the searched order over that in the given order",
            x="block of SmolLM2-135M",
            y="ratio of relative errors",
        )
        blocks.append(Figure(figure, "Error in the searched order over that in the given order, by block"))
    fitted = [
        (f"{_TITLES[model]} {name}", each["outputs"])
        for model in ("smollm2", "picogpt")
        for name, each in layers[model].items()
        if "outputs" in each
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
            [{"matrix": name, **each, "best": forms[form]} for (name, each), form in zip(fitted, best, strict=True)],
        ),
    ]
    return blocks


def _row(label: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    weights = [each["weight"] for each in found]
    return {
        "matrix": label,
        "count": len(found),
        "parameters": mean(each["parameters"] for each in found),
        **{form: mean(each[form] for each in weights) for form in ("svd", "given order", "permuted")},
        "gain": mean(each["permuted"] / each["given order"] for each in weights),
        "below": f"{sum(each['permuted'] < each['given order'] for each in weights)} of {len(found)}",
    }


def _picogpt(records: Path, origins: list[dict[str, Any]]) -> list[Block]:
    found = {
        file.stem.removeprefix("picogpt-"): json.loads(file.read_text())
        for file in sorted(records.glob("picogpt-*.json"))
    }
    if not found:
        return []
    origins += [each["provenance"] for each in found.values()]
    rows = [
        {
            "run": name.replace("-seed", ", seed "),
            "stage": stage["name"],
            "parameters": stage["parameters"],
            "tokens": stage["tokens"],
            "before": stage["before"]["loss"],
            "after": stage["after"]["loss"],
        }
        for name, each in found.items()
        for stage in each["stages"]
    ]
    return [
        Heading("In stages or at once: PicoGPT"),
        Text(
            (
                "Loss on the whole validation split, nats per character. The same layers become Kronecker sums in a "
                "searched order; the teacher is the dense model that comes with "
                "the library.",
                _verdict(
                    {name: each["stages"][-1]["after"]["loss"] for name, each in found.items()},
                    "loss",
                    {name: [stage["tokens"] for stage in each["stages"]] for name, each in found.items()},
                ),
            )
        ),
        Table(_RUNS, rows),
    ]


def _smollm2(records: Path, origins: list[dict[str, Any]]) -> list[Block]:
    files = {name: records / f"smollm2-{name}.json" for name in ("stages", "at-once")}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if not found:
        return []
    origins += [each["provenance"] for each in found.values()]
    first = next(iter(found.values()))
    rows = [
        {
            "run": name,
            "stage": stage["name"],
            "parameters": each["parameters"]["after"],
            "tokens": stage["training"]["tokens"],
            "before": stage["before"]["perplexity"],
            "after": stage["after"]["perplexity"],
        }
        for name, each in found.items()
        for stage in each["stages"]
    ]
    return [
        Heading("In stages or at once: SmolLM2-135M"),
        Text(
            (
                f"Perplexity on {first['dense']['tokens']:,} tokens of "
                f"{Path(first['recipe']['evaluation']['text']).name}; dense {first['dense']['perplexity']:.2f} with "
                f"{first['parameters']['before']:,} parameters. The embedding is split twice by 1x2, the MLPs of every "
                "other block become sums of four Kronecker products; parameters are those at the end.",
                _verdict(
                    {name: each["stages"][-1]["after"]["perplexity"] for name, each in found.items()},
                    "perplexity",
                    {name: [stage["training"]["tokens"] for stage in each["stages"]] for name, each in found.items()},
                ),
            )
        ),
        Table(_RUNS, rows),
    ]


def _verdict(last: dict[str, float], what: str, tokens: dict[str, list[int]]) -> str:
    """Which way ends lower, by the means over seeds, and what sets both apart."""
    ways = {way: [value for name, value in last.items() if name.startswith(way)] for way in ("stages", "at-once")}
    if not all(ways.values()):
        return "Only one of both ways has been run."
    stages, once = (mean(values) for values in ways.values())
    word = "lower" if stages < once else "not lower"
    runs = len(ways["stages"])
    seen = next(count for name, count in tokens.items() if name.startswith("stages"))
    return (
        f"After the same number of tokens the {what} in stages is {word}: {stages:.4g} against {once:.4g} at once, "
        f"over {runs} seed{'s' * (runs > 1)}. In stages what is made smaller last has learnt from "
        f"{seen[-1] / sum(seen):.0%} of the tokens, and the rate falls to zero in each; at once everything learns from "
        "all of them."
    )


if __name__ == "__main__":
    write_page(HERE, PAGE)
    print(PAGE)
