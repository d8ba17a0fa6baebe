"""The embedding of SmolLM2-135M at a half and a quarter of its parameters, before and after healing.

``python studies/embeddings/smollm2.py studies/smollm2/recipe.yaml WORDNET`` takes the model and the texts of the
recipe and the folder of WordNet's database, and writes one JSON for each form and size into ``smollm2/`` beside this
file; what is there is not run again. The head stays tied. Healing is in two stages, as SEE has it: first the embedding
and hidden states of the dense model are aimed at, then its outputs and the text; the embedding alone learns.
"""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpochain import FinetuneConfig, compress, finetune
from mpochain.atomic import write_bytes
from mpochain.compression import Entangled
from mpochain.jobs.recipe import read_recipe
from mpochain.language import load_language_model, perplexity, read_tokens, windows
from mpochain.report import provenance
from mpochain.units import Pieces, Units, WordNet

HERE = Path(__file__).parent
EMBEDDING = "model.embed_tokens"
BUDGETS = (0.5, 0.25)
WINDOW, TEST_WINDOWS = 512, 32

_SHOWN = ("Ġking", "Ġriver", "Ġplayed", "Ġgood", "Ġ1", "ing", "ĠPython")
_NEAREST = 5

# Pieces for tokens that the lexicon does not know, and how many tokens have to share a unit.
_PIECES, _SHARED = 4000, 5

_LEARNING: dict[str, Any] = {
    "batch_size": 2,
    "accumulate": 2,
    "autocast": "bfloat16",
    "warmup_steps": 2,
    "trainable": (EMBEDDING,),
}
STAGES = {
    "hidden states": {
        "steps": 10,
        "learning_rate": 3e-4,
        "outputs": 0.0,
        "hidden": 1.0,
        "hidden_layers": (EMBEDDING, *(f"model.layers.{layer}" for layer in (4, 9, 14, 19, 24, 29))),
    },
    "outputs": {"steps": 20, "learning_rate": 3e-4, "distillation": 0.5},
}


def units_of(tokenizer: Any, rows: int, wordnet: Path) -> Units:
    """Two units of each token: meanings, whatever its case and with a blank before it or not, or pieces."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(rows)))
    lexicon, pieces = WordNet(wordnet), Pieces.train(tokens, _PIECES)
    return Units.of(tokens, [lambda token: lexicon(token.removeprefix("Ġ")), pieces], 2, least=_SHARED)


@torch.no_grad()
def nearest(embedding: Any, tokenizer: Any) -> dict[str, list[str]]:
    """The tokens whose rows have the smallest angle to that of a token."""
    rows = nn.functional.normalize(embedding.weight.float(), dim=1)
    found = {}
    for token in _SHOWN:
        place = tokenizer.convert_tokens_to_ids(token)
        order = (rows @ rows[place]).topk(_NEAREST + 1).indices.tolist()
        found[token] = tokenizer.convert_ids_to_tokens([each for each in order if each != place][:_NEAREST])
    return found


def run(
    language: Any, form: str, budget: float, method: Any, learn: Any, measured: Callable[[nn.Module], float]
) -> dict[str, Any]:
    """One embedding made smaller and healed, with the perplexity after each step."""
    model = copy.deepcopy(language.model)
    report = compress(model, budget, targets=[EMBEDDING], method=method, log=print)
    (record,) = report.layers
    print(report.table())
    steps = [{"step": "made smaller", "perplexity": measured(model)}]
    for name, settings in STAGES.items():
        label = f"{form} {budget:g}, {name}"
        result = finetune(
            model, learn, config=FinetuneConfig(**_LEARNING, **settings), teacher=language.model, label=label
        )
        steps.append(
            {
                "step": name,
                "perplexity": measured(model),
                "tokens": result.tokens,
                "seconds": result.seconds,
                "losses": result.losses,
            }
        )
        print(label, steps[-1]["perplexity"])
    return {
        "form": form,
        "budget": budget,
        "becomes": record.form,
        "parameters": record.parameters_after,
        "bytes": record.bytes_after,
        "dense parameters": record.parameters_before,
        "dense bytes": record.bytes_before,
        "weight error": record.weight_error,
        "model parameters": sum(each.numel() for each in model.parameters()),
        "seconds": report.seconds,
        "steps": steps,
        "nearest": nearest(model.get_submodule(EMBEDDING), language.tokenizer),
        "provenance": provenance(threads=torch.get_num_threads()),
    }


def main(recipe_file: Path, wordnet: Path) -> None:
    """Make what is missing."""
    recipe = read_recipe(recipe_file)
    assert recipe.healing is not None
    assert recipe.evaluation is not None
    language = load_language_model(recipe.model)
    language.model.float()
    text = read_tokens(recipe.healing.text, language.tokenizer)
    learn = windows(text, WINDOW)
    test = read_tokens(recipe.evaluation.text, language.tokenizer)

    def measured(model: nn.Module) -> float:
        return perplexity(model, test, window=WINDOW, count=TEST_WINDOWS).perplexity

    rows = language.model.get_submodule(EMBEDDING).num_embeddings
    units = units_of(language.tokenizer, rows, wordnet)
    often = torch.bincount(text, minlength=rows).float() + 1
    methods = {
        "low rank": "svd",
        "MPO": "tt_svd",
        "TensorGPT": "token_train",
        "SEE": Entangled(units=units.index, coefficients=True),
        "SEE, by frequency": Entangled(units=units.index, coefficients=True, frequencies=often),
    }
    folder = HERE / "smollm2"
    folder.mkdir(exist_ok=True)

    def keep(name: str, record: dict[str, Any]) -> None:
        write_bytes(folder / f"{name}.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())

    if not (folder / "dense.json").exists():
        counts = {key: getattr(units, key) for key in ("count", "whole", "cut", "padded", "apart")}
        places = Counter(len([name for name in units.units_of(word) if name]) for word in units.words[:1000])
        keep(
            "dense",
            {
                "model": Path(recipe.model).name,
                "perplexity": measured(language.model),
                "units": counts,
                "places of the first thousand": dict(places),
                "examples": {token: units.units_of(token) for token in _SHOWN},
                "nearest": nearest(language.model.get_submodule(EMBEDDING), language.tokenizer),
                "provenance": provenance(threads=torch.get_num_threads()),
            },
        )
    for budget in BUDGETS:
        for form, method in methods.items():
            name = f"{form.replace(', ', '-').replace(' ', '-')}-{budget:g}"
            if not (folder / f"{name}.json").exists():
                keep(name, run(language, form, budget, method, learn, measured))


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:3]))
