"""The embedding of SmolLM2-135M at a half and a quarter of its parameters, before and after healing.

``python studies/embeddings/smollm2.py studies/smollm2/recipe.yaml WORDNET WORK`` takes the model and the texts of the
recipe and the folder of WordNet's database, keeps models and what is needed to go on in the folder WORK, and writes one
JSON for each form and size into ``smollm2/`` beside this file; what is there is not run again. The head stays tied.
Healing is in two stages, as SEE has it: first the embedding and hidden states of the dense model are aimed at, then its
outputs and the text; the embedding alone learns. A form heals at the rate after which it had, at half the parameters,
a lower loss over the last steps than at both rates beside it: on text that it had not learned from before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from typing import Any

import torch
from torch import nn

from mpochain.atomic import write_bytes
from mpochain.jobs import distill_by, read_recipe
from mpochain.jobs.recipe import Recipe, UnitsOfTokens
from mpochain.jobs.token_units import token_units
from mpochain.language import LanguageModel, load_language_model
from mpochain.report import provenance

HERE = Path(__file__).parent
EMBEDDING = "model.embed_tokens"
BUDGETS = (0.5, 0.25)
RATES, _LAST = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 12

_SHOWN = ("Ġking", "Ġriver", "Ġplayed", "Ġgood", "1", "ing", "ĠPython")
_NEAREST = 5

_LEARNING: dict[str, Any] = {
    "batch_size": 2,
    "warmup_steps": 4,
    "autocast": "bfloat16",
    "trainable": [EMBEDDING],
}
_HIDDEN = [EMBEDDING, *(f"model.layers.{layer}" for layer in (4, 9, 14, 19, 24, 29))]
_STAGES = {
    "hidden-states": {"steps": 16, "outputs": 0.0, "hidden": 1.0, "hidden_layers": _HIDDEN},
    "outputs": {"steps": 48, "distillation": 0.5},
}


def forms(wordnet: Path) -> dict[str, dict[str, Any]]:
    """How each form is made, as groups of recipes have it."""
    return {
        "low rank": {"method": "svd"},
        "MPO": {"method": "tt_svd"},
        "TensorGPT": {"method": "token_train"},
        "pieces": {"units": {"pieces": 4000}, "coefficients": True},
        "SEE": {"units": {"wordnet": str(wordnet), "pieces": 4000, "least": 5}, "coefficients": True},
    }


def recipe_of(recipe: Recipe, group: dict[str, Any], budget: float, rate: float) -> Recipe:
    """The recipe of one form at one size and rate."""
    assert recipe.healing is not None
    assert recipe.evaluation is not None
    first, *others = ({"name": name, "training": training} for name, training in _STAGES.items())
    return read_recipe(
        None,
        {
            "model": recipe.model,
            "evaluation": {"text": recipe.evaluation.text, "windows": 8},
            "healing": {
                "text": recipe.healing.text,
                "window": 256,
                "training": {**_LEARNING, "learning_rate": rate},
            },
            "stages": [{**first, "groups": [{"targets": [EMBEDDING], "budget": budget, **group}]}, *others],
        },
    )


@torch.no_grad()
def nearest(language: LanguageModel) -> dict[str, list[str]]:
    """The tokens whose rows have the smallest angle to that of a token."""
    embedding: Any = language.model.get_submodule(EMBEDDING)
    tokenizer = language.tokenizer
    rows = nn.functional.normalize(embedding.weight.float(), dim=1)
    found = {}
    for token in _SHOWN:
        place = tokenizer.convert_tokens_to_ids(token)
        order = (rows @ rows[place]).topk(_NEAREST + 1).indices.tolist()
        found[token] = tokenizer.convert_ids_to_tokens([each for each in order if each != place][:_NEAREST])
    return found


def best_rate(made: Callable[[float], dict[str, Any]]) -> float:
    """The rate whose neighbours are no better, from the better of two on."""

    def loss(rate: float) -> float:
        return fmean(made(rate)["stages"][-1]["training"]["losses"][-_LAST:])

    best = min((1e-3, 1e-4), key=loss)
    while True:
        rate, place = best, RATES.index(best)
        best = min(RATES[max(place - 1, 0) : place + 2], key=loss)
        if best == rate:
            return rate


def main(recipe_file: Path, wordnet: Path, work: Path) -> None:
    """Make what is missing."""
    recipe = read_recipe(recipe_file)
    folder = HERE / "smollm2"
    folder.mkdir(exist_ok=True)

    def keep(name: str, record: dict[str, Any]) -> None:
        write_bytes(folder / f"{name}.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())

    if not (folder / "dense.json").exists():
        language = load_language_model(recipe.model)
        rows: Any = language.model.get_submodule(EMBEDDING)
        record: dict[str, Any] = {"model": Path(recipe.model).name, "nearest": nearest(language), "units": {}}
        for form, group in forms(wordnet).items():
            if "units" in group:
                units = token_units(language.tokenizer, rows.num_embeddings, UnitsOfTokens(**group["units"]))
                counts = {key: getattr(units, key) for key in ("count", "whole", "cut", "padded", "apart")}
                record["units"][form] = {**counts, "examples": {token: units.units_of(token) for token in _SHOWN}}
        keep("dense", {**record, "provenance": provenance(threads=torch.get_num_threads())})

    def made(form: str, group: dict[str, Any], budget: float, rate: float) -> dict[str, Any]:
        name = f"{form.replace(' ', '-')}-{budget:g}-rate-{rate:g}"
        file = folder / f"{name}.json"
        if not file.exists():
            found = distill_by(recipe_of(recipe, group, budget, rate), work / name, log=print)
            about = {"form": form, "budget": budget, "rate": rate}
            keep(name, {**about, **found.as_dict(), "nearest": nearest(found.language)})
            rmtree(work / name)
        return json.loads(file.read_text(encoding="utf-8"))

    for form, group in forms(wordnet).items():
        largest, *others = BUDGETS
        rate = best_rate(partial(made, form, group, largest))
        for budget in others:
            made(form, group, budget, rate)


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:4]))
