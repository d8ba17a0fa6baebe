"""Language models of words with embeddings of several forms, 10 to 80 times smaller.

``python studies/embeddings/words.py VALID TEST WORDNET`` takes WikiText-2's validation text to learn from, its test
text to be measured on and the folder of WordNet's database, and writes one JSON for each run into ``words/`` beside
this file; what is there is not run again. All tables start with the deviation that was best for the dense one. Each
form learns at the rate beside which, at 20 times smaller, neither was better. Both, and the epoch, are chosen by the
last tenth of the training text. Variations of a form are made at 20 times smaller alone, and learn at its rate.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forms import DENSE, Forms, parameters_of
from rates import best_rate
from torch import Tensor, nn
from word_model import COLUMNS, WORDS, Text, WordModel, loss, perplexity, sample

from mpochain.errors import NonFiniteError
from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.train import TrainConfig, train

HERE = Path(__file__).parent
# The first is where rates are chosen.
SHRINKS = (20, 10, 80, 40)
STARTS, FIRST = (1.0, 0.1, 0.02), (3e-3, 1e-3)
BATCH, EPOCHS, SEED = 32, 8, 42

_SHOWN = ("king", "war", "river", "played", "good", "1942", "Australian", "quickly")
_NEAREST, _ROUNDS = 5, 60


def run(text: Text, embedding: nn.Module, start: float, rate: float, label: str) -> dict[str, Any]:
    """One model trained, and measured at the epoch that was best on what was held out.

    Raises:
        NonFiniteError: the loss is no number any more.
    """
    torch.manual_seed(SEED)
    model = WordModel(embedding, start)
    steps = len(text.train) // (BATCH * model.positions.num_embeddings)
    config = TrainConfig(
        steps=EPOCHS * steps, batch_size=BATCH, learning_rate=rate, warmup_steps=50, evaluate_every=steps, seed=SEED
    )
    best: dict[str, Any] = {"held out": float("inf")}

    def evaluate() -> dict[str, float]:
        found = perplexity(model, text.held_out)
        if found < best["held out"]:
            best.update({"held out": found, "state": copy.deepcopy(model.state_dict())})
        return {"perplexity": found}

    result = train(
        model, lambda generator, _: sample(text.train, generator, BATCH), loss, config, evaluate=evaluate, label=label
    )
    model.load_state_dict(best["state"])
    return {
        "parameters": parameters_of(embedding),
        "index bytes": sum(each.numel() * each.element_size() for each in embedding.buffers()),
        "model parameters": parameters_of(model),
        "held out": best["held out"],
        "test": perplexity(model, text.test),
        "epochs": [point.metrics["perplexity"] for point in result.curve],
        "tokens/s": result.tokens_per_second,
        "look-up": look_up(embedding, text),
        "nearest": nearest(embedding, text),
    }


@torch.no_grad()
def look_up(embedding: nn.Module, text: Text) -> dict[str, float]:
    """Seconds for 4,096 words of the test text, and for a dense table, in turns."""
    dense, ids = nn.Embedding(WORDS, COLUMNS), text.test[:4096]
    pair = [("this", embedding), ("dense", dense)]
    times: dict[str, list[float]] = {name: [] for name, _ in pair}
    for _ in range(_ROUNDS):
        # By turns the first: what comes after the other finds its words in cache.
        pair.reverse()
        for name, each in pair:
            began = time.perf_counter()
            each(ids)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def nearest(embedding: nn.Module, text: Text) -> dict[str, list[str]]:
    """The words whose rows have the smallest angle to that of a word."""
    weight: Any = embedding.weight
    rows: Tensor = nn.functional.normalize(weight, dim=1)
    found = {}
    for word in _SHOWN:
        if word in text.counts:
            place = text.vocabulary.index(word)
            order = (rows @ rows[place]).topk(_NEAREST + 1).indices.tolist()
            found[word] = [text.vocabulary[each] for each in order if each != place][:_NEAREST]
    return found


def main(learn: Path, test: Path, wordnet: Path) -> None:
    """Make what is missing."""
    text = Text(learn, test)
    forms = Forms(text, wordnet)

    def made(form: str, shrink: int, start: float, rate: float) -> dict[str, Any]:
        label = f"{form} {shrink}x start {start:g} rate {rate:g}"
        file = HERE / "words" / f"{label.replace(' ', '-')}.json"
        if not file.exists():
            # Another seed than the model's, whose other tables would begin with the same numbers.
            torch.manual_seed(SEED + 1)
            found = forms.make(form, shrink, start)
            record: dict[str, Any] = {"form": form, "shrink": shrink, "start": start, "rate": rate}
            record["absent"] = found is None
            if found is not None:
                try:
                    record |= run(text, found.embedding, start, rate, label)
                except NonFiniteError as error:
                    record["diverged"] = str(error)
                if (units := found.units) is not None:
                    record["units"] = {key: getattr(units, key) for key in ("count", "whole", "cut", "padded", "apart")}
                    words = [word for word in _SHOWN if word in units.words]
                    record["examples"] = {word: units.units_of(word) for word in words}
            record["unknown"] = text.unknown()
            record["provenance"] = provenance(threads=torch.get_num_threads(), commit=True)
            file.parent.mkdir(exist_ok=True)
            write_bytes(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return json.loads(file.read_text(encoding="utf-8"))

    def held_out(form: str, start: float, rate: float) -> float:
        shrink = 1 if form == DENSE else SHRINKS[0]
        return made(form, shrink, start, rate).get("held out", math.inf)

    start = min(STARTS, key=lambda each: held_out(DENSE, each, FIRST[0]))
    rates = {form: best_rate(partial(held_out, form, start), first=FIRST) for form in (DENSE, *forms.makers)}
    for shrink in SHRINKS[1:]:
        for form in forms.makers:
            made(form, shrink, start, rates[form])
    for variation in forms.variations:
        made(variation, SHRINKS[0], start, rates[variation.split(",")[0]])


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:4]))
