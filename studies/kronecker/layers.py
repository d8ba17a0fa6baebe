"""Errors of Kronecker sums with and without a search for an order, beside low rank and chains of equal parameters.

``python -m studies.kronecker.layers CORPUS`` measures the MLPs of SmolLM2-135M, as studies/smollm2/recipe.yaml has it,
and the linear layers of the PicoGPT in studies/picogpt/trained, on the corpus that it was trained on. It writes
``layers.json`` beside this file, one matrix after the other, and goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain import shapes
from mpochain.compression import collect_moments, select
from mpochain.decomposition import (
    KroneckerFactors,
    calibrated,
    interpolative_rank,
    split_off,
    split_spec,
    weighted_low_rank,
)
from mpochain.language import load_language_model, read_tokens, windows
from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.workflows.recipe_file import read_recipe
from studies.picogpt import load_corpus
from studies.picogpt.weights import load_weights

HERE = Path(__file__).parent
RECIPE = HERE.parent / "smollm2" / "recipe.yaml"
# The first dense run of the study.
PICOGPT = HERE.parent / "picogpt" / "trained" / "dense-86c4e6aa.safetensors"
WINDOW, WINDOWS = 512, 16
TERMS, SECONDS, ITERATIONS, SKEW = 4, 15.0, 50, 8

# Layers of SmolLM2 at which the sums are fitted to data too, which takes a minute each.
FITTED = (3, 15, 25)


def errors(weight: Tensor, gram: Tensor, *, fitted: bool) -> dict[str, Any]:
    """Relative errors of a weight, and of its outputs, at the parameters of its Kronecker sum."""
    out, in_ = (int(size) for size in weight.shape)
    factor = (2, 2) if out == in_ else (4, 2) if out > in_ else (2, 4)
    # A square matrix of blocks 2x2 has four terms at most, as many as it has entries.
    terms = TERMS // 2 if out == in_ else TERMS
    spec = split_spec((out, in_), [factor], terms)
    rank = spec.parameters // (out + in_)
    record: dict[str, Any] = {"shape": [out, in_], "parameters": spec.parameters / (out * in_), "rank": rank}
    splits = {name: split_off(weight, [factor], terms, permuted=name == "permuted", seconds=SECONDS) for name in FORMS}
    plain, whitened = weighted_low_rank(weight), weighted_low_rank(weight, gram)
    record["weight"] = {"svd": plain.relative_error(rank)} | {
        name: split.relative_error for name, split in splits.items()
    }
    if fitted:
        chain = shapes.skewed(out, in_, SKEW, max(spec.parameters // shapes.skewed(out, in_, SKEW, 1).parameters, 1))
        record["outputs"] = {
            "svd_llm": whitened.relative_error(rank),
            "interpolative": whitened.relative_error(interpolative_rank(out, in_, spec.parameters)),
            "chain": calibrated(weight, chain, gram, iterations=ITERATIONS).relative_error,
            **{name: _output_error(weight, gram, split) for name, split in splits.items()},
            **{f"{name}, fitted": _fitted(weight, gram, split) for name, split in splits.items()},
        }
    return record


FORMS = ("given order", "permuted")


def _output_error(weight: Tensor, gram: Tensor, split: KroneckerFactors) -> float:
    ordered, moments = weight.double()[split.rows][:, split.columns], gram.double()[split.columns][:, split.columns]
    large, small = (core.double() for core in split.cores)
    product = torch.einsum("xair,rbjy->abij", large, small).reshape(ordered.shape)
    rest = ordered - product
    return math.sqrt(float(((rest @ moments) * rest).sum() / ((ordered @ moments) * ordered).sum()))


def _fitted(weight: Tensor, gram: Tensor, split: KroneckerFactors) -> float:
    ordered, moments = weight[split.rows][:, split.columns], gram[split.columns][:, split.columns]
    return calibrated(ordered, split.spec, moments, iterations=ITERATIONS).relative_error


def smollm2() -> Iterator[tuple[str, nn.Module, Any, bool]]:
    """Every MLP matrix with what its layer reads."""
    recipe = read_recipe(RECIPE)
    assert recipe.calibration is not None
    language = load_language_model(recipe.model)
    tokens = read_tokens(recipe.calibration.text, language.tokenizer)
    layers = select(language.model, [r"re:.*\.mlp\..*_proj"])
    fitted = {name: layer for name, layer in layers.items() if int(name.split(".")[2]) in FITTED}
    inputs = windows(tokens[: WINDOW * WINDOWS], WINDOW)
    moments = collect_moments(language.model, fitted, inputs, inputs=set(fitted))
    for name, layer in layers.items():
        yield name, layer, moments.get(name), name in fitted


def picogpt(corpus: Path) -> Iterator[tuple[str, nn.Module, Any, bool]]:
    """Every linear of the blocks."""
    model, _ = load_weights(PICOGPT)
    tokens = load_corpus(corpus).train
    layers = select(model, [r"re:blocks\..*"])
    inputs = [tokens[start : start + 256].long()[None] for start in range(0, len(tokens) - 256, len(tokens) // 32)]
    moments = collect_moments(model, layers, inputs, inputs=set(layers))
    for name, layer in layers.items():
        yield name, layer, moments[name], True


def main(corpus: Path) -> None:
    """Measure the missing matrices."""
    file = HERE / "layers.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"smollm2": {}, "picogpt": {}}
    settings = {"windows": WINDOWS, "window": WINDOW, "seconds": SECONDS, "iterations": ITERATIONS, "skew": SKEW}
    if any(record.get(key, value) != value for key, value in settings.items()):
        raise SystemExit(f"{file} was measured with other settings; remove it")
    record |= settings
    for model, matrices in (("picogpt", picogpt(corpus)), ("smollm2", smollm2())):
        for name, layer, moments, fitted in matrices:
            if name in record[model]:
                continue
            weight: Any = layer.weight
            gram = moments.inputs if moments is not None else torch.eye(weight.shape[1])
            record[model][name] = errors(weight.detach(), gram, fitted=fitted)
            record["provenance"] = provenance(threads=torch.get_num_threads(), commit=True)
            write_bytes(file, (json.dumps(record, indent=1) + "\n").encode())
            print(model, name, record[model][name], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
