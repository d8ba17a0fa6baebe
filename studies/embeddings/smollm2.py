"""The embedding of SmolLM2-135M at a half and a quarter of its parameters, before and after healing.

``python studies/embeddings/smollm2.py studies/smollm2/recipe.yaml WORDNET WORK`` takes the model and the texts of the
recipe and the folder of WordNet's database, keeps models that wait to be healed in the folder WORK, and writes one
JSON for each form and size into ``smollm2/`` beside this file; what is there is not run again. The head stays tied.
Healing is in two stages, as SEE has it: first the embedding and hidden states of the dense model are aimed at, then its
outputs and the text; the embedding alone learns. A form heals at the rate after which it had, at half the parameters,
a lower loss over the last steps than at both rates beside it: on text that it had not learned from before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from page import last_losses
from rates import best_rate
from torch import nn

from mpochain.language import (
    LanguageModel,
    load_language_model,
    perplexity,
    read_tokens,
    save_language_model,
    windows,
)
from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.train import FinetuneConfig, finetune
from mpochain.workflows import Recipe, read_recipe
from mpochain.workflows.groups import compress_stage
from mpochain.workflows.recipe import Group, Stage, UnitsOfTokens
from mpochain.workflows.token_units import token_units

HERE = Path(__file__).parent
EMBEDDING = "model.embed_tokens"
BUDGETS = (0.5, 0.25)

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


class Study:
    """The dense model, what all forms are healed and measured on, and where models wait to be healed.

    Args:
        recipe: names the model and its texts.
        wordnet: folder of the database.
        work: folder for models that are made smaller and not healed.
    """

    def __init__(self, recipe: Recipe, wordnet: Path, work: Path) -> None:
        assert recipe.finetune is not None
        assert recipe.evaluation is not None
        self._model, self._work, self.groups = recipe.model, work, forms(wordnet)
        self._dense = load_language_model(recipe.model)
        self._text = read_tokens(recipe.evaluation.text, self._dense.tokenizer)
        self._pieces = torch.cat(windows(read_tokens(recipe.finetune.text, self._dense.tokenizer), 256))

    @cached_property
    def perplexity(self) -> dict[str, Any]:
        """Of the dense model."""
        return self._measured(self._dense)

    def dense(self) -> dict[str, Any]:
        """What is known before anything is made smaller: perplexity, nearest rows, and the units of tokens."""
        rows: Any = self._dense.model.get_submodule(EMBEDDING)
        units = {}
        for form, group in self.groups.items():
            if "units" in group:
                found = token_units(self._dense.tokenizer, rows.num_embeddings, UnitsOfTokens(**group["units"]))
                counts = {key: getattr(found, key) for key in ("count", "whole", "cut", "padded", "apart")}
                units[form] = {**counts, "examples": {token: found.units_of(token) for token in _SHOWN}}
        return {
            "model": Path(self._model).name,
            "perplexity": self.perplexity,
            "nearest": nearest(self._dense),
            "units": units,
        }

    def healed(self, form: str, budget: float, rate: float) -> dict[str, Any]:
        """One form of one size, after both stages at a rate."""
        language, made = self._smaller(form, budget)
        stages: list[dict[str, Any]] = []
        before = made["perplexity"]
        for name, config in _STAGES.items():
            result = finetune(
                language.model,
                self._pieces,
                config=FinetuneConfig(learning_rate=rate, **_LEARNING, **config),
                teacher=self._dense.model,
                label=f"{form} {budget:g} rate {rate:g} {name}",
            )
            stages.append(
                {
                    "name": name,
                    "before": before,
                    "training": {
                        "tokens": result.tokens,
                        "seconds": result.seconds,
                        "losses": [round(loss, 5) for loss in result.losses],
                    },
                    "after": self._measured(language),
                }
            )
            before = stages[-1]["after"]
        stages[0] |= {"layers": [made["layer"]], "seconds": made["seconds"]}
        about = {"form": form, "budget": budget, "rate": rate, "dense": self.perplexity}
        return {**about, "stages": stages, "nearest": nearest(language)}

    def _smaller(self, form: str, budget: float) -> tuple[LanguageModel, dict[str, Any]]:
        """Made once for all rates: fitting may take longer than healing."""
        folder = self._work / f"{form.replace(' ', '-')}-{budget:g}"
        record = folder / "made.json"
        if not record.exists():
            language = load_language_model(self._model)
            began = time.perf_counter()
            stage = Stage(
                name=form.replace(" ", "-"), groups=(Group(targets=(EMBEDDING,), budget=budget, **self.groups[form]),)
            )
            (layer,) = compress_stage(stage, language.model, tokenizer=language.tokenizer)
            seconds = time.perf_counter() - began
            save_language_model(language, folder)
            made = {"layer": layer, "seconds": seconds, "perplexity": self._measured(language)}
            write_bytes(record, json.dumps(made).encode())
        return load_language_model(str(folder)), json.loads(record.read_text())

    def _measured(self, language: LanguageModel) -> dict[str, Any]:
        return perplexity(language.model, self._text, window=512, count=8).as_dict()


def main(recipe_file: Path, wordnet: Path, work: Path) -> None:
    """Make what is missing."""
    study = Study(read_recipe(recipe_file), wordnet, work)
    folder = HERE / "smollm2"
    folder.mkdir(exist_ok=True)

    def record(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = folder / f"{name}.json"
        if not file.exists():
            made = {**make(), "provenance": provenance(threads=torch.get_num_threads(), commit=True)}
            write_bytes(file, (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode())
        return json.loads(file.read_text(encoding="utf-8"))

    def healed(form: str, budget: float, rate: float) -> dict[str, Any]:
        name = f"{form.replace(' ', '-')}-{budget:g}-rate-{rate:g}"
        return record(name, lambda: study.healed(form, budget, rate))

    def loss(form: str, rate: float) -> float:
        return last_losses(healed(form, BUDGETS[0], rate))

    record("dense", study.dense)
    for form in study.groups:
        rate = best_rate(partial(loss, form), first=(1e-3, 1e-4))
        for budget in BUDGETS[1:]:
            healed(form, budget, rate)


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:4]))
