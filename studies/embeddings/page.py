"""``python studies/embeddings/page.py``: docs/embeddings.md and its figure, from the records beside this file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mpochain.atomic import write_bytes
from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "embeddings.md"

# The order of the tables.
_FORMS = ("low rank", "MPO", "word2ketXS", "MorphTE", "SEE")
_TOKEN_FORMS = ("low rank", "MPO", "TensorGPT", "pieces", "SEE")

_WORDS = (
    Column("form", "embedding"),
    Column("aim", "smaller by"),
    Column("parameters", "its parameters", ",d"),
    Column("index bytes", "bytes of its index", ",d"),
    Column("rate", "rate", "g"),
    Column("held out", "held out", ".1f"),
    Column("test", "test", ".1f"),
    Column("over", "over dense", "+.1%"),
    Column("look-up", "look-up / dense", ".1f"),
    Column("tokens/s", "tokens/s of training", ",.0f"),
)
_UNITS = (
    Column("form", "units"),
    Column("count", "units", ",d"),
    Column("whole", "words that are units", ",d"),
    Column("cut", "with more than places", ",d"),
    Column("padded", "with fewer", ",d"),
    Column("apart", "told apart by a number", ",d"),
    Column("examples", "such as"),
)
_STEPS = (
    Column("form", "embedding"),
    Column("budget", "of the table", ".0%"),
    Column("parameters", "its parameters", ",d"),
    Column("bytes", "bytes, index and all", ",d"),
    Column("error", "error of the table", ".3f"),
    Column("rate", "rate", "g"),
    Column("made smaller", "made smaller", ",.1f"),
    Column("hidden states", "hidden states aimed at", ",.1f"),
    Column("outputs", "outputs aimed at", ",.1f"),
)

# The steps of healing by whose losses a rate is chosen.
_LAST = 12

Records = list[dict[str, Any]]


def write_page(records: Path, page: Path) -> None:
    """The page of the records in a folder; what has not been measured yet is left out."""
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    words, smollm2 = (_read(records / name) for name in ("words", "smollm2"))
    preface = (
        "Made from records by a command (`python studies/embeddings/page.py`), not edited by hand. What each form is: "
        "`mpochain.EntangledEmbedding`, `mpochain.MPOEmbedding`, `mpochain.TokenTrainEmbedding`; how long a look-up "
        "takes: `docs/benchmarks.md`."
    )
    blocks: list[Block] = [Text((preface,))]
    blocks += _words(words, figures) if words else []
    blocks += _smollm2(smollm2) if smollm2 else []
    origins = [each["provenance"] for each in [*words, *smollm2]]
    if origins:
        blocks += [Heading("Where it was made"), Text(origin(origins))]
    made = Page("Embeddings whose table is not held", blocks)
    write_bytes(page, made.markdown(page.parent).encode())


def _read(folder: Path) -> Records:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def _words(records: Records, figures: Path) -> list[Block]:
    """Language models of words."""
    chosen = _chosen(records)
    dense = chosen.get(("dense", 1))
    preface = (
        "WikiText-2: a transformer of two blocks of 256 learns from the validation text, vocabulary 10,000 words, and "
        "is measured on the test text; blocks and head compute in bfloat16. Its head is dense and not tied: what is "
        "compared is the embedding alone. "
        "Each form learns at the rate beside which, at 20 times smaller, neither was better on the last tenth of the "
        "training text (rates about threefold apart), and stops at the epoch that is best there. Perplexities; one "
        "seed."
    )
    blocks: list[Block] = [
        Heading("A language model of words"),
        Text((preface,)),
        Table(_WORDS, tuple(_word_row(record, dense) for record in _ordered(chosen))),
    ]
    absent = [f"{form} at {shrink}x" for (form, shrink), record in chosen.items() if record["absent"]]
    if absent:
        blocks.append(Text((f"Not to be had so small: {', '.join(absent)}.",)))
    if dense is not None:
        blocks.append(Text(tuple(_targets(chosen, dense))))
        series = [Series("dense", [10, 80], [dense["test"]] * 2, markers=False)]
        for form in _FORMS:
            points = [(s, chosen[form, s]["test"]) for s in (10, 20, 40, 80) if _there(chosen, form, s)]
            if points:
                series.append(Series(form, [s for s, _ in points], [value for _, value in points]))
        path = figures / "embeddings-words.png"
        draw(
            path,
            series,
            title="Perplexity of a language model of words by its embedding",
            x="times smaller than the dense table",
            y="perplexity of the test text",
            axes={"xlim": (0, 90), "xticks": [10, 20, 40, 80]},
        )
        blocks.append(Figure(path, "perplexity against the size of the embedding"))
    units = [record for record in _ordered(chosen) if record.get("units") and record["shrink"] == 20]
    if units:
        rows = [{"form": each["form"], **each["units"], "examples": _examples(each["examples"])} for each in units]
        blocks += [Heading("Units", level=3), Table(_UNITS, tuple(rows))]
    return [*blocks, *_neighbours([each for each in _ordered(chosen) if each["shrink"] in (1, 20)], "form")]


def _chosen(records: Records) -> dict[tuple[str, int], dict[str, Any]]:
    """Of runs that differ in their rate alone, the one that was best on what was held out."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        key = record["form"], record["shrink"]
        if key not in found or record.get("held out", 0) < found[key].get("held out", 0):
            found[key] = record
    return found


def _ordered(chosen: Mapping[tuple[str, int], dict[str, Any]]) -> Records:
    place = {form: number for number, form in enumerate(("dense", *_FORMS))}
    keys = sorted(chosen, key=lambda key: (key[1], place[key[0]]))
    return [chosen[key] for key in keys if not chosen[key]["absent"]]


def _there(chosen: Mapping[tuple[str, int], dict[str, Any]], form: str, shrink: int) -> bool:
    return (form, shrink) in chosen and not chosen[form, shrink]["absent"]


def _word_row(record: dict[str, Any], dense: dict[str, Any] | None) -> dict[str, Any]:
    return {
        **record,
        "aim": "-" if record["form"] == "dense" else f"{record['shrink']}x",
        "over": record["test"] / dense["test"] - 1 if dense is not None else None,
        "look-up": record["look-up"]["this"] / record["look-up"]["dense"],
    }


def _targets(chosen: Mapping[tuple[str, int], dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """What was to be reached, and whether it was."""
    found = []
    at_ten = {form: chosen[form, 10]["test"] for form in _FORMS if _there(chosen, form, 10)}
    if at_ten:
        best = min(at_ten, key=lambda form: at_ten[form])
        loss = at_ten[best] / dense["test"] - 1
        found.append(
            f"At 10 times smaller at most 5 % above dense for one form: {'met' if loss <= 0.05 else 'missed'}, "
            f"{best} {loss:+.1%}."
        )
    at_twenty = {form: chosen[form, 20]["test"] for form in _FORMS if _there(chosen, form, 20)}
    if {"SEE", "word2ketXS", "low rank"} <= set(at_twenty):
        met = at_twenty["SEE"] <= min(at_twenty["word2ketXS"], at_twenty["low rank"])
        shown = ", ".join(f"{form} {at_twenty[form]:.1f}" for form in ("SEE", "word2ketXS", "low rank"))
        found.append(
            f"At 20 times smaller SEE no worse than word2ketXS and low rank: {'met' if met else 'missed'}, {shown}."
        )
    at_eighty = [form for form in _FORMS if _there(chosen, form, 80)]
    if at_eighty:
        shown = ", ".join(f"{form} {chosen[form, 80]['test']:.1f}" for form in at_eighty)
        found.append(f"At 80 times smaller: {shown}.")
    return found


def _smollm2(records: Records) -> list[Block]:
    """The embedding of a trained language model."""
    dense = next((record for record in records if "form" not in record), None)
    tried = [record for record in records if "form" in record]
    best: dict[tuple[float, int], dict[str, Any]] = {}
    for record in sorted(tried, key=_last_losses, reverse=True):
        best[-record["budget"], _TOKEN_FORMS.index(record["form"])] = record
    made = [best[key] for key in sorted(best)]
    rows = [_step_row(record) for record in made]
    preface = (
        "SmolLM2-135M-Instruct, whose embedding and tied head are 28.3 of its 134.5 million parameters. Perplexity of "
        "8 windows of WikiText-2's test text; healing on the validation text in two stages, as SEE has it: embedding "
        "and hidden states of the dense model first, then its outputs and the text; the embedding alone learns. "
        f"What stands is, of the rates that were tried, the one with the lowest loss over the last {_LAST} steps; at "
        "half of the parameters both rates beside it were tried."
    )
    blocks: list[Block] = [Heading("The embedding of SmolLM2"), Text((preface,))]
    if rows:
        tokens = sum(stage["training"]["tokens"] for stage in made[0]["stages"])
        blocks += [
            Table(_STEPS, rows),
            Text(
                (
                    f"Dense: {_perplexity(made[0]['dense']):.1f}. Tokens of healing: {tokens:,} of each form.",
                    *_lowest(rows),
                )
            ),
        ]
    if dense is not None and dense["units"]:
        found = dense["units"].items()
        units = [{"form": form, **each, "examples": _examples(each["examples"])} for form, each in found]
        blocks += [Heading("Units of its tokens", level=3), Table(_UNITS, units)]
    shown = [each for each in (dense, *made) if each is not None and each.get("budget", 0.25) == 0.25]
    return [*blocks, *_neighbours(shown, "form")]


def _step_row(record: dict[str, Any]) -> dict[str, Any]:
    first, second = record["stages"]
    (layer,) = first["layers"]
    return {
        **record,
        "parameters": layer["parameters_after"],
        "bytes": layer["bytes_after"],
        "error": layer["weight_error"],
        "made smaller": _perplexity(first["before"]),
        "hidden states": _perplexity(first["after"]),
        "outputs": _perplexity(second["after"]),
    }


def _lowest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which form is the best of its size, before healing and after it."""
    found = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        alike = [row for row in rows if row["budget"] == budget]
        named = {when: min(alike, key=lambda row: row[when]) for when in ("error", "made smaller", "outputs")}
        found.append(
            f"At {budget:.0%} {named['error']['form']} has the lowest error of the table, "
            f"{named['made smaller']['form']} the lowest perplexity before healing "
            f"({named['made smaller']['made smaller']:,.1f}), {named['outputs']['form']} after it "
            f"({named['outputs']['outputs']:,.1f})."
        )
    return found


def _last_losses(record: dict[str, Any]) -> float:
    return fmean(record["stages"][-1]["training"]["losses"][-_LAST:])


def _perplexity(found: dict[str, Any]) -> float:
    return float(found["perplexity"])


def _neighbours(records: Sequence[Mapping[str, Any]], name: str) -> list[Block]:
    """What stands nearest to some words, in each embedding."""
    if not records:
        return []
    words = list(records[0]["nearest"])
    forms = (Column(str(k), each.get(name, "dense")) for k, each in enumerate(records))
    columns = (Column("word", "nearest to"), *forms)
    rows = [
        {"word": word, **{str(k): ", ".join(each["nearest"][word][:3]) for k, each in enumerate(records)}}
        for word in words
    ]
    return [Heading("Nearest rows", level=3), Table(columns, tuple(rows))]


def _examples(examples: Mapping[str, Sequence[str]]) -> str:
    shown = list(examples.items())[:4]
    return "; ".join(f"{word}: {' '.join(unit or '-' for unit in units)}" for word, units in shown)


if __name__ == "__main__":
    write_page(HERE, PAGE)
