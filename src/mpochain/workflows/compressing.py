"""Compression of a language model by a recipe, with perplexity and speed before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from mpochain.architectures import context_length
from mpochain.compression import CompressionReport, compress
from mpochain.errors import RecipeError
from mpochain.language import LanguageModel, Perplexity, Speed, compare_speed
from mpochain.report import provenance
from mpochain.surgery import set_execution
from mpochain.surgery.finding import compressed_layers
from mpochain.system.memory import freed_memory_returned, peak_resident
from mpochain.system.progress import Counters, uncounted
from mpochain.workflows.inputs import Section, read_inputs, read_model
from mpochain.workflows.recipe import Recipe

__all__ = ["Compressed", "compress_by", "time_models"]

# Tokens of the prompt that models are timed on, unless they have a shorter context.
_PROMPT = 512
_SENTENCE = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True)
class Compressed:
    """A compressed model, and what is known of it.

    Attributes:
        language: the compressed model; the dense one after a dry run.
        report: a record of each layer.
        parameters: of the model, before and after.
        before: perplexity of the dense model; None without an evaluation.
        after: perplexity of the compressed model; None without an evaluation.
        speed: of ``"dense"`` and ``"compressed"``; None if they were not timed.
        peak_bytes: the most memory that the process had until the model was compressed, libraries included.
    """

    language: LanguageModel
    report: CompressionReport
    parameters: tuple[int, int]
    before: Perplexity | None
    after: Perplexity | None
    speed: dict[str, Speed] | None
    peak_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the model, for JSON."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "perplexity": {
                "before": self.before.as_dict() if self.before is not None else None,
                "after": self.after.as_dict() if self.after is not None else None,
            },
            "speed": {name: speed.as_dict() for name, speed in self.speed.items()} if self.speed is not None else None,
            "peak_bytes": self.peak_bytes,
            "compression": self.report.as_dict(),
        }


def compress_by(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    evaluated: Literal["both", "after"] = "both",
    timed: bool = False,
    counters: Counters = uncounted,
) -> Compressed:
    """Read the model of a recipe, evaluate it, compress it, then evaluate and time it again.

    Args:
        recipe: with a budget, unless the settings of its method leave no choice.
        dry_run: only find out what each layer would become; nothing is evaluated or timed.
        evaluated: ``"both"`` to evaluate the dense model too.
        timed: time the dense and the compressed model, in turn.
        counters: makes the counter of an evaluation's progress, from its label.

    Raises:
        RecipeError: no budget, no calibration text for a method that needs one, or an evaluation on a text that the
            model is calibrated or finetuned on.
        MPOError: whatever a step raises.
    """
    method = recipe.chosen_method()
    if recipe.budget is None and not method.settled:
        raise RecipeError("no budget is given; say what the layers may keep, such as 0.6, '60%' or '200MB'")
    if method.needs != "nothing" and recipe.calibration is None:
        raise RecipeError(
            f"method {method.name} needs calibration data; name a text typical of the model's use in the section "
            "calibration (on the command line --calibration)"
        )
    sections: list[Section] = ["calibration"] if dry_run else ["calibration", "evaluation"]
    inputs = read_inputs(recipe, *sections)
    model = inputs.language.model
    before = inputs.perplexity(model, "dense", counters) if evaluated == "both" else None
    parameters = _parameters(model)
    with freed_memory_returned():
        report = compress(
            model,
            recipe.budget,
            calibration=inputs.calibration,
            targets=recipe.targets,
            ignore=recipe.ignore,
            method=method,
            sequential=recipe.sequential,
            seed=recipe.seed,
            dry_run=dry_run,
        )
    peak = peak_resident()
    # What is published names the commit, for which compress starts no process.
    report = replace(report, provenance=provenance(threads=torch.get_num_threads(), commit=True))
    after = inputs.perplexity(model, "compressed", counters)
    speed = None
    if timed and not dry_run:
        dense = read_model(recipe.model, dtype=recipe.dtype, role="the dense model again, to time both")
        speed = time_models({"dense": dense.model, "compressed": model}, dense)
    return Compressed(inputs.language, report, (parameters, _parameters(model)), before, after, speed, peak)


def time_models(models: dict[str, nn.Module], language: LanguageModel) -> dict[str, Speed]:
    """Seconds of prefill and decoding of several models, in turn, compressed layers in fast execution meanwhile.

    Args:
        models: by name, with one tokenizer and one context length.
        language: whose tokenizer and context length these are.
    """
    longest = context_length(language.model) or _PROMPT
    prompt = language.tokenizer(_SENTENCE * _PROMPT, add_special_tokens=False, verbose=False, return_tensors="pt")
    tokens = prompt["input_ids"][:, : min(_PROMPT, longest // 2)]
    compressed = [model for model in models.values() if compressed_layers(model)]
    for model in compressed:
        set_execution(model, cache=True, autotune=True)
    try:
        return compare_speed(models, tokens)
    finally:
        for model in compressed:
            set_execution(model)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
