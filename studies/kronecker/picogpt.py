"""PicoGPT compressed to Kronecker sums, in stages and at once, with the same number of tokens to learn from.

``python -m studies.kronecker.picogpt CORPUS`` begins with the dense model in studies/picogpt/trained, on the corpus
that it was trained on, and writes one JSON for each run beside this file; a finished run is not repeated.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

from mpochain import FinetuneConfig, finetune
from mpochain.report import provenance
from mpochain.system.files import write_bytes
from mpochain.workflows import at_once, read_recipe
from mpochain.workflows.groups import compress_stage
from mpochain.workflows.recipe import Recipe
from studies.picogpt import load_corpus
from studies.picogpt.evaluation import evaluate
from studies.picogpt.size import parameter_count
from studies.picogpt.weights import load_weights

HERE = Path(__file__).parent
# The first dense run of the study.
DENSE = HERE.parent / "picogpt" / "trained" / "dense-86c4e6aa.safetensors"
SEEDS = (0, 1)
STAGES: dict[str, Any] = {
    "model": "picogpt",
    "finetune": {"text": "-", "training": {"steps": 250, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 20}},
    "stages": [
        {
            "name": "mlps",
            "groups": [
                {"targets": [r"re:.*\.w_1"], "factors": [[4, 2]], "terms": 4},
                {"targets": [r"re:.*\.w_2"], "factors": [[2, 4]], "terms": 4},
            ],
        },
        {"name": "attention", "groups": [{"targets": [r"re:.*\.w_[qkvo]"], "factors": [[2, 2]], "terms": 2}]},
    ],
}


def run(recipe: Recipe, corpus: Any, seed: int) -> dict[str, Any]:
    """One run, with the loss and the accuracy on the whole validation split around each stage."""
    teacher, _ = load_weights(DENSE)
    model = copy.deepcopy(teacher)
    windows = corpus.train[: len(corpus.train) // 256 * 256].view(-1, 256).long()
    stages = []
    for stage in recipe.stages:
        compress_stage(stage, model)
        before = evaluate(model, corpus.validation)
        config = FinetuneConfig(**{**recipe.training_of(stage).model_dump(exclude_unset=True), "seed": seed})
        result = finetune(model, windows, config=config, teacher=teacher, label=f"{stage.name}, seed {seed}")
        after = evaluate(model, corpus.validation)
        stages.append(
            {
                "name": stage.name,
                "parameters": parameter_count(model),
                "before": {"loss": before.loss, "accuracy": before.accuracy},
                "after": {"loss": after.loss, "accuracy": after.accuracy},
                "steps": result.steps,
                "tokens": result.tokens,
                "seconds": result.seconds,
            }
        )
    return {"seed": seed, "stages": stages, "provenance": provenance(threads=torch.get_num_threads(), commit=True)}


def main(file: Path) -> None:
    """Make the missing runs."""
    corpus = load_corpus(file)
    recipe = read_recipe(None, STAGES)
    for seed in SEEDS:
        for name, way in (("stages", recipe), ("at-once", at_once(recipe))):
            target = HERE / f"picogpt-{name}-seed{seed}.json"
            if not target.exists():
                record = run(way, corpus, seed)
                write_bytes(target, (json.dumps(record, indent=1) + "\n").encode())
                print(target.name, record["stages"][-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
