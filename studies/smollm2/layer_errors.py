"""Single layers of a language model at a share of their parameters: output errors of several forms.

``python studies/smollm2/layer_errors.py studies/smollm2/recipe.yaml`` writes ``layers.json`` beside the recipe, one
layer after the other, going on where it was interrupted, and then ``docs/results/layers.md``. The model and the text
are those of the recipe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpochain import shapes
from mpochain.compression import collect_moments
from mpochain.decomposition import calibrated, interpolative_rank, weighted_low_rank
from mpochain.language import load_language_model, read_tokens, windows
from mpochain.report import Column, provenance
from mpochain.report.origin import origin
from mpochain.report.page import Heading, Page, Table, Text
from mpochain.system.files import write_bytes
from mpochain.workflows.recipe_file import read_recipe

PAGE = Path(__file__).parents[2] / "docs" / "results" / "layers.md"
WINDOW, WINDOWS = 512, 16
SKEW, ITERATIONS = 8, 100

# Of a sum's parameters, how many the chain has.
CHAINS = (0.2, 0.4, 0.6)

# The layers, and the output errors at a quarter and at half of their parameters that were set as targets.
LAYERS = {
    "model.layers.3.self_attn.q_proj": (0.217, 0.138),
    "model.layers.15.self_attn.o_proj": (0.247, 0.1435),
    "model.layers.15.mlp.gate_proj": (0.285, 0.187),
    "model.layers.25.mlp.up_proj": (0.415, 0.267),
    "model.layers.15.mlp.down_proj": (0.440, 0.276),
}
SHARES = (0.25, 0.5)

COLUMNS = (
    Column("layer", "layer"),
    Column("share", "of the parameters"),
    Column("svd", "SVD", ".3f"),
    Column("whitened", "whitened SVD (SVD-LLM)", ".3f"),
    Column("interpolative", "interpolative", ".3f"),
    Column("chain", "chain alone", ".3f"),
    Column("sum", "interpolative and chain", ".3f"),
    Column("part", "its chain's share", ".1f"),
    Column("best", "best", ".3f"),
    Column("target", "target", ".4g"),
)


def errors(weight: Tensor, gram: Tensor, share: float) -> dict[str, Any]:
    """Relative output errors of every form with at most this share of the parameters of a weight."""
    out, in_ = (int(size) for size in weight.shape)
    room = int(share * out * in_)
    # The order of the outputs is kept too, a number of four bytes for each.
    short = room - out
    whitened = weighted_low_rank(weight, gram)
    plain = weighted_low_rank(weight)
    rank = room // (out + in_)
    left, right = plain.factors(rank)
    single = calibrated(weight, shapes.skewed(out, in_, SKEW, _bond(out, in_, room)), gram, iterations=ITERATIONS)
    sums = {part: _sum_error(weight, gram, short, part) for part in CHAINS}
    part = min(sums, key=lambda candidate: sums[candidate])
    return {
        "svd": _output_error(weight, gram, (left @ right).to(weight.dtype)),
        "whitened": whitened.relative_error(rank),
        "interpolative": whitened.relative_error(interpolative_rank(out, in_, short)),
        "chain": single.relative_error,
        "sum": sums[part],
        "part": part,
    }


def _sum_error(weight: Tensor, gram: Tensor, room: int, part: float) -> float:
    out, in_ = (int(size) for size in weight.shape)
    chain = shapes.skewed(out, in_, SKEW, _bond(out, in_, int(part * room)))
    low = shapes.low_rank(out, in_, interpolative_rank(out, in_, room - chain.parameters))
    return calibrated(weight, [low, chain], gram, iterations=ITERATIONS).relative_error


def _bond(out: int, in_: int, room: int) -> int:
    return max(room // shapes.skewed(out, in_, SKEW, 1).parameters, 1)


def _output_error(weight: Tensor, gram: Tensor, other: Tensor) -> float:
    weight64, moments = weight.double(), gram.double()
    rest = weight64 - other.double()
    return float((((rest @ moments) * rest).sum() / ((weight64 @ moments) * weight64).sum()).sqrt())


def measure(recipe_file: Path, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record again after each layer and share that it did not hold yet."""
    recipe = read_recipe(recipe_file)
    assert recipe.calibration is not None
    language = load_language_model(recipe.model)
    tokens = read_tokens(recipe.calibration.text, language.tokenizer)
    layers = {name: language.model.get_submodule(name) for name in LAYERS}
    # The beginning of the text, which the targets were measured on: errors differ by a twentieth from part to part.
    inputs = windows(tokens[: WINDOW * WINDOWS], WINDOW)
    moments = collect_moments(language.model, layers, inputs, inputs=LAYERS)
    record |= {
        "model": Path(recipe.model).name,
        "text": Path(recipe.calibration.text).name,
        "windows": WINDOWS,
        "window": WINDOW,
        "provenance": provenance(threads=torch.get_num_threads(), commit=True),
    }
    for name, layer in layers.items():
        gram = moments[name].inputs
        weight: Any = layer.weight
        assert gram is not None
        for share in SHARES:
            key = f"{name} {share}"
            if key not in record["errors"]:
                record["errors"][key] = errors(weight.detach(), gram, share)
                yield record


def write_page(file: Path, page: Path) -> None:
    """The page of a record, from the record alone."""
    record: dict[str, Any] = json.loads(file.read_text())
    rows = []
    for name, targets in LAYERS.items():
        for share, target in zip(SHARES, targets, strict=True):
            errors = record["errors"][f"{name} {share}"]
            best = min(errors[form] for form in ("whitened", "interpolative", "chain", "sum"))
            rows.append({"layer": name, "share": f"{share:.0%}", **errors, "best": best, "target": target})
    preface = (
        "Made from a record by a command (`python studies/smollm2/layer_errors.py`), not edited by hand. Relative "
        "error of the outputs on the calibration text, `||(W - W') H^1/2|| / ||W H^1/2||` with `H` the second "
        "moments of the inputs, at equal parameters; all outputs count alike. The targets are those that were set "
        "before any of it was built.",
        f"{record['model']}, the first {record['windows']} windows of {record['window']} tokens of {record['text']}; "
        f"chains `(out/{SKEW},{SKEW})|({SKEW},in/{SKEW})`, {ITERATIONS} iterations of L-BFGS; of a sum the best "
        f"of chains with {', '.join(f'{part:.0%}' for part in CHAINS)} of the parameters.",
    )
    layers_page = Page(
        "Single layers of SmolLM2-135M",
        [
            *(Text((line,)) for line in preface),
            Table(COLUMNS, rows),
            Heading("Where it was made"),
            Text(origin([record["provenance"]])),
        ],
    )
    write_bytes(page, layers_page.markdown(page.parent).encode())


def main(recipe: Path) -> None:
    """Measure the missing layers, and write the page."""
    file = recipe.parent / "layers.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"errors": {}}
    for updated in measure(recipe, record):
        write_bytes(file, (json.dumps(updated, indent=1) + "\n").encode())
        print(*list(updated["errors"].items())[-1], flush=True)
    write_page(file, PAGE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
