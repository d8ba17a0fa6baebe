"""Demo run: decompose a dense PicoGPT at several bonds, measure, finetune, and measure again."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mpochain.report import provenance
from mpochain.report.figures import require_matplotlib
from mpochain.system.files import require_writable
from mpochain.train import TrainConfig
from studies.picogpt.corpus import Corpus
from studies.picogpt.decomposition import compress_linears
from studies.picogpt.demo.page import write_page
from studies.picogpt.demo.result import DemoResult, DemoRow
from studies.picogpt.design import Design
from studies.picogpt.evaluation import evaluate
from studies.picogpt.model import PicoGPT, build
from studies.picogpt.size import macs_per_token, parameter_count
from studies.picogpt.training import LEARNING_RATE, train_picogpt
from studies.picogpt.weights import load_weights, shipped

__all__ = ["demo"]

_log = logging.getLogger(__name__)


def demo(
    corpus: Corpus,
    out: Path,
    *,
    bonds: Sequence[int] = (4, 8, 16, 32),
    dense_steps: int = 300,
    finetune_steps: int = 60,
    batch_size: int = 32,
) -> DemoResult:
    """Decompose a dense PicoGPT at several bonds, measure, finetune, measure again, and write the results.

    The dense model is read from ``trained/`` if that has one for the corpus; otherwise it is trained briefly. Chains in
    ``trained/``, which were trained from a random start, are shown beside the decomposed ones.

    Args:
        corpus: the text.
        out: folder for ``demo.json``, ``demo.md`` and the figures.
        bonds: χ of each compressed model.
        dense_steps: training steps of the dense model if ``trained/`` has none for the corpus.
        finetune_steps: finetuning steps of each compressed model; 0 for none.
        batch_size: sequences per training step.

    Raises:
        OutputError: the folder is not writable.
        MissingDependencyError: matplotlib is missing.
        CorpusError: the text is too short for a context of 256.
    """
    began = time.perf_counter()
    require_writable(out)
    require_matplotlib()
    corpus.require_context(PicoGPT.context)
    dense, origin = _dense_model(corpus, dense_steps, batch_size)
    _log.info("dense model: %s", origin)
    models: dict[str, PicoGPT] = {"dense": dense}
    quality: dict[str, dict[str, Any]] = {"dense": {"before": evaluate(dense, corpus.validation)}}
    for bond in bonds:
        name = f"χ={bond}"
        _log.info(
            "%s: TT-SVD of every linear layer, evaluation, %d steps of finetuning, evaluation", name, finetune_steps
        )
        models[name], report = compress_linears(dense, Design("paper", bond, dense.design.width))
        model = models[name]
        record: dict[str, Any] = {"errors": {layer.name: layer.weight_error for layer in report.layers}, "losses": []}
        record["before"] = evaluate(model, corpus.validation)
        if finetune_steps:
            result = train_picogpt(model, corpus, _finetuning(finetune_steps, batch_size), label=name)
            record["losses"], final = result.losses, result.curve[-1].metrics
            record["after"] = final["loss"], final["accuracy"]
        quality[name] = record
        trained = shipped(corpus, bond)
        if trained is not None:
            _log.info("%s: evaluation of the chains that were trained from a random start", name)
            models[f"{name}, trained"], _ = load_weights(trained)
            quality[f"{name}, trained"] = {"before": evaluate(models[f"{name}, trained"], corpus.validation)}
    _log.info("timing")
    one, many = _forward_milliseconds(models, 1), _forward_milliseconds(models, batch_size)
    dense_parameters = parameter_count(dense)
    rows = []
    for name, model in models.items():
        record = quality[name]
        errors = record.get("errors", {})
        after = record.get("after", (None, None))
        rows.append(
            DemoRow(
                name=name,
                parameters=parameter_count(model),
                compression=dense_parameters / parameter_count(model),
                error=_total_error(dense, errors) if errors else None,
                loss_before=record["before"].loss,
                accuracy_before=record["before"].accuracy,
                loss_after=after[0],
                accuracy_after=after[1],
                macs_per_token=macs_per_token(model, batch_size * PicoGPT.context),
                milliseconds_one=one[name],
                milliseconds_many=many[name],
                layer_errors=errors,
                finetune_losses=record.get("losses", []),
            )
        )
    setting = {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "bonds": list(bonds),
        "finetuning": _finetuning(finetune_steps, batch_size).model_dump(mode="json") if finetune_steps else None,
        "batch_size": batch_size,
    }
    demo_result = DemoResult(
        str(corpus),
        origin,
        setting,
        tuple(rows),
        provenance(threads=torch.get_num_threads(), commit=True),
        time.perf_counter() - began,
    )
    write_page(demo_result, out)
    return demo_result


def _dense_model(corpus: Corpus, steps: int, batch_size: int) -> tuple[PicoGPT, str]:
    path = shipped(corpus)
    if path is not None:
        model, record = load_weights(path)
        trained = record["training"]["config"]
        return model, f"stored in this repository, trained for {trained['steps']} steps on this corpus"
    model = build(vocab_size=len(corpus.vocabulary), seed=42)
    config = TrainConfig(
        steps=steps, batch_size=batch_size, learning_rate=LEARNING_RATE, warmup_steps=min(100, steps // 6)
    )
    train_picogpt(model, corpus, config, label="dense")
    return model, f"trained now for {steps} steps; the repository has none for this corpus"


def _finetuning(steps: int, batch_size: int) -> TrainConfig:
    # Of 1e-3, 2e-3, 4e-3 and 8e-3, the last gave the lowest loss after 40 steps, at χ=4 and at χ=16.
    return TrainConfig(steps=steps, batch_size=batch_size, learning_rate=8e-3, warmup_steps=steps // 6)


def _total_error(dense: PicoGPT, errors: dict[str, float]) -> float:
    """Relative Frobenius error over all layers together: squared errors weighted by the weights' squared norms."""
    weights = dict(dense.named_parameters())
    norms = {name: float(weights[f"{name}.weight"].detach().norm()) ** 2 for name in errors}
    lost = sum(norms[name] * error**2 for name, error in errors.items())
    return float((lost / sum(norms.values())) ** 0.5)


def _forward_milliseconds(models: dict[str, PicoGPT], batch: int, rounds: int = 7) -> dict[str, float]:
    """Median forward time of each model; each round times all models in turn, so that noise affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    tokens = torch.zeros(batch, PicoGPT.context, dtype=torch.long)
    with torch.no_grad():
        for k in range(rounds + 1):
            for name, model in models.items():
                began = time.perf_counter()
                model(tokens)
                if k:  # the first round creates plans and warms caches
                    times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
