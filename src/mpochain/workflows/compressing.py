"""One model made smaller by a recipe, with what it was and what it became."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from mpochain.architectures import context_length
from mpochain.compression import CompressionReport, compress
from mpochain.errors import RecipeError, SpecError
from mpochain.language import (
    LanguageModel,
    Perplexity,
    Speed,
    compare_speed,
    load_language_model,
    perplexity,
    read_tokens,
    require_window,
    windows,
)
from mpochain.report import provenance
from mpochain.surgery import set_execution
from mpochain.surgery.finding import compressed_layers
from mpochain.system.memory import freed_memory_returned, peak_resident
from mpochain.workflows.recipe import Evaluation, Recipe
from mpochain.workflows.texts import require_unseen

__all__ = ["Compressed", "Counter", "Log", "compress_by", "evaluate", "time_models"]

Log = Callable[[str], None]
Counter = Callable[[int, int], None]

_PROMPT = 512


@dataclass(frozen=True)
class Compressed:
    """What came out.

    Attributes:
        language: the smaller model; the dense one after a dry run.
        report: what became of each layer.
        parameters: of the whole model, before and after.
        before: perplexity of the dense model; None without an evaluation.
        after: of the smaller one.
        speed: of ``"dense"`` and ``"compressed"``; None if it was not asked for.
        peak_bytes: the most memory that the process had until the model was smaller, libraries and all.
    """

    language: LanguageModel
    report: CompressionReport
    parameters: tuple[int, int]
    before: Perplexity | None
    after: Perplexity | None
    speed: dict[str, Speed] | None
    peak_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "perplexity": {
                "before": self.before.as_dict() if self.before is not None else None,
                "after": self.after.as_dict() if self.after is not None else None,
            },
            "speed": {name: each.as_dict() for name, each in self.speed.items()} if self.speed is not None else None,
            "peak_bytes": self.peak_bytes,
            "compression": self.report.as_dict(),
        }


def compress_by(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    evaluated: Literal["both", "after"] = "both",
    timed: bool = False,
    log: Log = lambda _: None,
    counter: Callable[[str], Counter] | None = None,
) -> Compressed:
    """Read the model of a recipe, evaluate it, make it smaller, and evaluate and time it again.

    Args:
        recipe: with a budget.
        dry_run: whether only to find out what would become of each layer; nothing is evaluated or timed then.
        evaluated: whether the dense model is evaluated too.
        timed: whether to time the dense and the smaller model beside each other.
        log: told what is done.
        counter: makes what is told how far an evaluation has come, from its label.

    Raises:
        RecipeError: no budget, or an evaluation on a text that the model is calibrated or healed on.
        MPOError: whatever a step raises.
    """
    if recipe.budget is None:
        raise RecipeError("no budget is given; say what may be left, such as 0.6, '60%' or '200MB'")
    if not dry_run:
        require_unseen(recipe)
    log(f"reading {recipe.model}")
    language = load_language_model(recipe.model, dtype=recipe.dtype)
    require_dense(language.model, recipe.model)
    batches = None
    if recipe.evaluation is not None and not dry_run:
        require_window(language.model, recipe.evaluation.window)
    if recipe.calibration is not None:
        require_window(language.model, recipe.calibration.window)
        tokens = read_tokens(recipe.calibration.text, language.tokenizer)
        batches = windows(tokens, recipe.calibration.window, recipe.calibration.windows)
    text = None if recipe.evaluation is None or dry_run else read_tokens(recipe.evaluation.text, language.tokenizer)
    before = after = None
    if text is not None and recipe.evaluation is not None and evaluated == "both":
        before = evaluate(language.model, text, recipe.evaluation, counter and counter("dense"))
        log(f"perplexity of the dense model: {before.perplexity:.2f}")
    parameters = _parameters(language.model)
    with freed_memory_returned():
        report = compress(
            language.model,
            recipe.budget,
            calibration=batches,
            targets=recipe.targets,
            ignore=recipe.ignore,
            method=recipe.method,
            sequential=recipe.sequential,
            seed=recipe.seed,
            dry_run=dry_run,
        )
    peak = peak_resident()
    # `compress` runs no git; the record that this workflow writes names the commit.
    report = replace(report, provenance=provenance(threads=torch.get_num_threads(), commit=True))
    if text is not None and recipe.evaluation is not None:
        after = evaluate(language.model, text, recipe.evaluation, counter and counter("compressed"))
        log(f"perplexity of the compressed model: {after.perplexity:.2f}")
    speed = None
    if timed and not dry_run:
        log("timing both")
        dense = load_language_model(recipe.model, dtype=recipe.dtype)
        speed = time_models({"dense": dense.model, "compressed": language.model}, dense)
    return Compressed(language, report, (parameters, _parameters(language.model)), before, after, speed, peak)


def require_dense(model: nn.Module, source: str) -> None:
    """Refuse a model that was compressed before.

    Raises:
        SpecError: it was.
    """
    if compressed_layers(model):
        raise SpecError(f"{source} is compressed already; begin with the dense model, or convert it first")


def evaluate(model: nn.Module, tokens: Any, evaluation: Evaluation, counter: Counter | None = None) -> Perplexity:
    """Perplexity on the windows that a recipe names.

    Args:
        model: causal language model.
        tokens: of the evaluation's text.
        evaluation: how it is read.
        counter: told how far it has come.
    """
    return perplexity(
        model,
        tokens,
        window=evaluation.window,
        stride=evaluation.stride,
        count=evaluation.windows,
        progress=counter,
    )


def time_models(models: dict[str, nn.Module], language: LanguageModel) -> dict[str, Speed]:
    """Prefill and decoding of models beside each other, chains in fast execution while they are timed."""
    longest = context_length(language.model) or _PROMPT
    some = "The quick brown fox jumps over the lazy dog. "
    prompt = language.tokenizer(some * _PROMPT, add_special_tokens=False, verbose=False, return_tensors="pt")
    tokens = prompt["input_ids"][:, : min(_PROMPT, longest // 2)]
    for model in models.values():
        if compressed_layers(model):
            set_execution(model, cache=True, autotune=True)
    try:
        return compare_speed(models, tokens)
    finally:
        for model in models.values():
            if compressed_layers(model):
                set_execution(model)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
