"""Page of the embeddings study: ``python studies/embeddings/page.py``.

Writes docs/results/embeddings.md and its figure from the records beside this file alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from mpochain.report import Column
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Block, Figure, Heading, Page, Table, Text
from mpochain.system.files import write_bytes

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results" / "embeddings.md"

# The order of the tables.
_FORMS = ("low rank", "MPO", "word2ketXS", "MorphTE", "pieces", "SEE")
_TOKEN_FORMS = ("low rank", "MPO", "TensorGPT", "pieces", "SEE")

_WORDS = (
    Column("form", "embedding"),
    Column("aim", "fewer parameters"),
    Column("parameters", "its parameters", ",d"),
    Column("bytes", "fewer bytes, index and all", ".1f"),
    Column("rate", "rate", "g"),
    Column("held out", "held out", ".1f"),
    Column("test", "test", ".1f"),
    Column("over", "over dense", "+.1%"),
    Column("look-up", "look-up, ms", ".2f"),
)
_VARIED = (
    Column("form", "embedding"),
    Column("units", "units", ",d"),
    Column("parameters", "its parameters", ",d"),
    Column("held out", "held out", ".1f"),
    Column("test", "test", ".1f"),
    Column("over", "over dense", "+.1%"),
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

_SHRINKS = (10, 20, 40, 80)

Records = list[dict[str, Any]]
Chosen = dict[tuple[str, int], dict[str, Any]]


def write_page(records: Path, page: Path) -> None:
    """The page of the records in a folder; what has not been measured yet is left out."""
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    words, smollm2 = (_read(records / name) for name in ("words", "smollm2"))
    preface = (
        "Made from records by a command (`python studies/embeddings/page.py`), not edited by hand. What each form is: "
        "`mpochain.EntangledEmbedding`, `mpochain.MPOEmbedding`, `mpochain.TokenTrainEmbedding`; how long a look-up "
        "takes: `docs/results/benchmarks.md`."
    )
    blocks: list[Block] = [Text((preface,))]
    blocks += [*_words(words, figures), *_origin(words)] if words else []
    blocks += [*_smollm2(smollm2), *_origin(smollm2)] if smollm2 else []
    made = Page("Embeddings whose table is not held", blocks)
    write_bytes(page, made.markdown(page.parent).encode())


def _read(folder: Path) -> Records:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def _origin(records: Records) -> list[Block]:
    found = origin([each["provenance"] for each in records])
    return [Heading("Where it was made", level=3), Text(found)]


def _words(records: Records, figures: Path) -> list[Block]:
    """Language models of words."""
    varied = [record for record in records if record["form"] not in ("dense", *_FORMS)]
    records = [record for record in records if record not in varied]
    chosen = _chosen(records)
    dense = chosen.get(("dense", 1))
    unknown = records[0]["unknown"]
    preface = (
        "WikiText-2: a transformer of two blocks of 256 learns from the validation text, vocabulary 10,000 words, and "
        f"is measured on the test text, of whose words {unknown:.1%} are not in the vocabulary and count as one; so "
        "perplexities compare with one another alone. Blocks and head compute in bfloat16. The head is dense and not "
        "tied: what is compared is the embedding alone. MorphTE makes a word of three morphemes; SEE of three meanings "
        "of WordNet, or of pieces if WordNet does not know it; `pieces` of three pieces. These two have a number for "
        "each word and rank, too, and units that five words share or more. All tables start with the deviation that "
        "was best for the dense one; each form learns at the rate beside which, at 20 times fewer parameters, neither "
        "was better (rates about threefold apart), and the best of eight epochs stands. All "
        "of this is chosen by the last tenth of the training text. Perplexities; one seed. "
        "The look-up is of the first 4,096 words of the test text, without gradients."
    )
    blocks: list[Block] = [
        Heading("A language model of words"),
        Text((preface,)),
        Table(_WORDS, tuple(_word_row(record, dense) for record in _ordered(chosen))),
    ]
    blocks += [Text(tuple(lines))] if (lines := [*_gaps(chosen), *_targets(chosen, dense)]) else []
    if dense is not None:
        series = [Series("dense", [10, 80], [dense["test"]] * 2, markers=False)]
        for form in _FORMS:
            points = [(s, chosen[form, s]["test"]) for s in _SHRINKS if _there(chosen, form, s)]
            if points:
                series.append(Series(form, [s for s, _ in points], [value for _, value in points]))
        path = figures / "embeddings-words.png"
        draw(
            path,
            series,
            title="Perplexity of a language model of words by its embedding",
            x="times fewer parameters than the dense table",
            y="perplexity of the test text",
            axes={"xlim": (0, 90), "xticks": [10, 20, 40, 80]},
        )
        blocks.append(Figure(path, "perplexity against the size of the embedding"))
    blocks += _variations(varied, chosen, dense)
    units = [record for record in _ordered(chosen) if record.get("units") and record["shrink"] == 20]
    if units:
        rows = [{"form": each["form"], **each["units"], "examples": _examples(each["examples"])} for each in units]
        blocks += [Heading("Units", level=3), Table(_UNITS, tuple(rows))]
    blocks += _rates(records)
    return [*blocks, *_neighbours([each for each in _ordered(chosen) if each["shrink"] in (1, 20)], "form")]


def _chosen(records: Records) -> Chosen:
    """Of runs that differ in their rate and start alone, the one that was best on what was held out."""
    found: Chosen = {}
    for record in records:
        key = record["form"], record["shrink"]
        if key not in found or record.get("held out", inf) < found[key].get("held out", inf):
            found[key] = record
    return found


def _ordered(chosen: Chosen) -> Records:
    place = {form: number for number, form in enumerate(("dense", *_FORMS))}
    keys = sorted(chosen, key=lambda key: (key[1], place[key[0]]))
    return [chosen[key] for key in keys if _there(chosen, *key)]


def _there(chosen: Chosen, form: str, shrink: int) -> bool:
    return "test" in chosen.get((form, shrink), {})


def _word_row(record: dict[str, Any], dense: dict[str, Any] | None) -> dict[str, Any]:
    is_dense = record["form"] == "dense"
    size = None if dense is None else _bytes(dense) / _bytes(record)
    return {
        **record,
        "aim": "-" if is_dense else f"{record['shrink']}x",
        "bytes": None if is_dense else size,
        "over": None if is_dense or dense is None else record["test"] / dense["test"] - 1,
        "look-up": 1e3 * record["look-up"]["this"],
    }


def _bytes(record: dict[str, Any]) -> int:
    return 4 * record["parameters"] + record["index bytes"]


def _gaps(chosen: Chosen) -> list[str]:
    """What the table has no row for, and why."""
    named = {key: f"{key[0]} at {key[1]}x" for key in itertools.product(_FORMS, _SHRINKS)}
    absent = [name for key, name in named.items() if chosen.get(key, {}).get("absent")]
    diverged = [name for key, name in named.items() if chosen.get(key, {}).get("diverged")]
    missing = [name for key, name in named.items() if key not in chosen]
    reasons = {"Not to be had so small": absent, "Diverged at every rate": diverged, "Not run yet": missing}
    return [f"{reason}: {', '.join(names)}." for reason, names in reasons.items() if names]


def _targets(chosen: Chosen, dense: dict[str, Any] | None) -> list[str]:
    """What was to be reached, and whether it was."""
    if dense is None:
        return []
    found = []
    at = {s: {form: chosen[form, s]["test"] for form in _FORMS if _there(chosen, form, s)} for s in _SHRINKS}
    family = {form: test for form, test in at[10].items() if form != "low rank"}
    if family:
        best = min(family, key=lambda form: family[form])
        loss = family[best] / dense["test"] - 1
        found.append(
            f"With 10 times fewer parameters at most 5 % above dense for one form, low rank aside: "
            f"{'met' if loss <= 0.05 else 'missed'}, {best} {loss:+.1%}."
        )
    if {"SEE", "word2ketXS", "low rank"} <= set(at[20]):
        met = at[20]["SEE"] <= min(at[20]["word2ketXS"], at[20]["low rank"])
        shown = ", ".join(f"{form} {at[20][form]:.1f}" for form in ("SEE", "word2ketXS", "low rank"))
        found.append(
            f"With 20 times fewer SEE no worse than word2ketXS and low rank: {'met' if met else 'missed'}, {shown}."
        )
    if at[80]:
        found.append(f"With 80 times fewer: {', '.join(f'{form} {test:.1f}' for form, test in at[80].items())}.")
    return found


def _variations(varied: Records, chosen: Chosen, dense: dict[str, Any] | None) -> list[Block]:
    """What one choice in a form is worth."""
    if not varied or dense is None:
        return []
    found = []
    for form in _FORMS:
        # By how much is varied.
        alike = [record for record in varied if record["form"].startswith(f"{form},")]
        found += [chosen[form, 20], *sorted(alike, key=lambda each: len(each["form"]))] if alike else []
    rows = [
        {**each, "units": each.get("units", {}).get("count"), "over": each["test"] / dense["test"] - 1}
        for each in found
    ]
    preface = (
        "At 20 times fewer parameters, each at the rate of the form that it varies. word2ketXS gives words their two "
        "digits in the order of their frequency, so that the commonest share their first; `words shuffled` in no "
        "order, `words by meaning` in that of WordNet's meanings from the most general on, so that words of one "
        "meaning share their first. `no coefficients`: without a number for each word and rank, in place of which "
        "there are more ranks. `broad`: units that 20 words share or more, so that there are fewer. `two places` for "
        "three."
    )
    return [Heading("Variations", level=3), Text((preface,)), Table(_VARIED, tuple(rows))]


def _rates(records: Records) -> list[Block]:
    """What the start and the rates were chosen by."""
    tried = [each for each in records if each["shrink"] in (1, 20) and not each["absent"]]
    rates = sorted({each["rate"] for each in tried})
    columns = (
        Column("form", "embedding"),
        Column("start", "start", "g"),
        *(Column(f"{rate:g}", f"rate {rate:g}", ".1f") for rate in rates),
    )
    place = {form: number for number, form in enumerate(("dense", *_FORMS))}
    rows: dict[tuple[int, float], dict[str, Any]] = {}
    for each in sorted(tried, key=lambda each: (place[each["form"]], -each["start"])):
        row = rows.setdefault(
            (place[each["form"]], each["start"]),
            {"form": each["form"], "start": each["start"], **{f"{rate:g}": None for rate in rates}},
        )
        row[f"{each['rate']:g}"] = each.get("held out")
    preface = "Perplexity of what was held out, dense and at 20 times fewer parameters, by the deviation of the table "
    return [
        Heading("Starts and rates", level=3),
        Text((f"{preface}at first and by the rate.",)),
        Table(columns, tuple(rows.values())),
    ]


def _smollm2(records: Records) -> list[Block]:
    """The embedding of a trained language model."""
    dense = next((record for record in records if "form" not in record), None)
    tried = [record for record in records if "form" in record]
    best: dict[tuple[float, int], dict[str, Any]] = {}
    for record in sorted(tried, key=last_losses, reverse=True):
        best[-record["budget"], _TOKEN_FORMS.index(record["form"])] = record
    made = [best[key] for key in sorted(best)]
    rows = [_step_row(record) for record in made]
    preface = (
        "SmolLM2-135M-Instruct, whose embedding and tied head are 28.3 of its 134.5 million parameters. Perplexity of "
        "8 windows of WikiText-2's test text; healing on the validation text in two stages, as SEE has it: embedding "
        "and hidden states of the dense model first, then its outputs and the text; the embedding alone learns. "
        f"What stands is, of the rates that were tried, the one with the lowest loss over the last {_LAST} steps: the "
        "rate is chosen at half of the parameters, beside which neither is better, and kept for a quarter."
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
                    *_unfinished(rows),
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


def _unfinished(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    there = {(row["form"], row["budget"]) for row in rows}
    missing = [
        f"{form} at {budget:.0%}" for budget in (0.5, 0.25) for form in _TOKEN_FORMS if (form, budget) not in there
    ]
    return [f"Not run yet: {', '.join(missing)}."] if missing else []


def last_losses(record: dict[str, Any]) -> float:
    """By which the rates of a form are compared: mean loss at the end of healing."""
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
