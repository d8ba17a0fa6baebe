"""Inputs of a recipe: the model and the tokenised texts, each read once and checked before any work."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpochain.compression.selection import dense_layers
from mpochain.errors import MPOError, RecipeError
from mpochain.language import (
    LanguageModel,
    Perplexity,
    load_language_model,
    perplexity,
    read_tokens,
    require_window,
    windows,
)
from mpochain.language.text import counted, require_vocabulary, spare_windows, starts
from mpochain.nn.dense import dense_shape
from mpochain.surgery.finding import compressed_layers
from mpochain.system.progress import Counter, Counters, uncounted
from mpochain.workflows.checks import require_inputs
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.sections import Evaluation
from mpochain.workflows.texts import digest

__all__ = ["ENOUGH_CALIBRATION", "Inputs", "Section", "enough_windows", "evaluate", "read_inputs", "read_model"]

logger = logging.getLogger(__name__)

# Calibration by default: so many tokens per input of the widest layer, and at least so many windows. With 37 tokens per
# input in place of 16, SmolLM2 loses 5 % less in 2.3 times the time (docs/decisions/0065).
_ROWS_PER_INPUT, _LEAST_WINDOWS = 16, 24

ENOUGH_CALIBRATION = f"{_ROWS_PER_INPUT} tokens per input of the widest layer"
"""How many windows are read by default, in settings that are compared before a model is read."""

# Windows of the calibration text that are set aside, if it has more than are used.
_HELD_OUT = 4
# As many if they decide which correction or which state of a refined block is kept.
_HELD_OUT_OF_BLOCKS = 8

Section = Literal["calibration", "evaluation", "finetune"]


@dataclass(frozen=True)
class Inputs:
    """Model and texts of a recipe; a text is None if the recipe has no such section or it was not read.

    Attributes:
        recipe: the recipe.
        language: the model with its tokenizer.
        calibration: windows, each ``(1, window)``, int64.
        held_out: some windows of the calibration text that are not used for calibration.
        evaluation: all tokens of the evaluation text, ``(n,)``, int64.
        also: all tokens of each further text of the evaluation, ``(n,)``, int64, by file name.
        training: windows of the finetuning text, ``(windows, window)``, int64.
    """

    recipe: Recipe
    language: LanguageModel
    calibration: list[Tensor] | None = None
    held_out: list[Tensor] | None = None
    evaluation: Tensor | None = None
    also: Mapping[str, Tensor] = field(default_factory=dict)
    training: Tensor | None = None

    @property
    def shards(self) -> bool:
        """Whether models are sharded over processes while they are trained."""
        return self.recipe.finetune is not None and self.recipe.finetune.shard

    def perplexity(self, model: nn.Module, label: str, counters: Counters = uncounted) -> Perplexity | None:
        """Measure perplexity on the evaluation text; None without one.

        Args:
            model: causal language model with the recipe's vocabulary.
            label: name of the model in logs and progress messages.
            counters: returns the progress counter for a label.

        Raises:
            NonFiniteError: the model predicts NaN.
        """
        if self.evaluation is None or self.recipe.evaluation is None:
            return None
        result = evaluate(model, self.evaluation, self.recipe.evaluation, counters(f"perplexity, {label}"))
        logger.info("perplexity, %s: %.2f", label, result.perplexity)
        return result

    def perplexities_of_also(
        self, model: nn.Module, label: str, counters: Counters = uncounted
    ) -> dict[str, Perplexity]:
        """Measure perplexity on each further text of the evaluation, by file name; see :meth:`perplexity`."""
        results = {}
        for name, tokens in self.also.items():
            assert self.recipe.evaluation is not None  # its texts are among them
            counter = counters(f"perplexity, {label}, {name}")
            results[name] = evaluate(model, tokens, self.recipe.evaluation, counter)
            logger.info("perplexity, %s, %s: %.2f", label, name, results[name].perplexity)
        return results

    def evaluation_windows(self) -> tuple[int, int] | None:
        """How many windows an evaluation uses, and how many the text has; None without a text."""
        evaluation = self.recipe.evaluation
        if self.evaluation is None or evaluation is None:
            return None
        return counted(len(self.evaluation), evaluation.window, evaluation.windows, evaluation.stride)

    def evaluation_setting(self) -> dict[str, Any]:
        """What identifies an evaluation, besides the model: its text and windows, ready for JSON."""
        evaluation = self.recipe.evaluation
        if evaluation is None:
            return {}
        return {**evaluation.model_dump(mode="json", exclude={"text", "also"}), "sha256": digest(evaluation.text)}

    def also_setting(self) -> dict[str, Any]:
        """What identifies an evaluation on the further texts, besides the model, ready for JSON."""
        evaluation = self.recipe.evaluation
        if evaluation is None:
            return {}
        return {**self.evaluation_setting(), "sha256": {text.name: digest(text) for text in evaluation.also}}


def read_inputs(recipe: Recipe, *sections: Section, model: Path | None = None, teacher: str | None = None) -> Inputs:
    """Read the model of a recipe and the texts of some of its sections.

    Args:
        recipe: recipe that names the model and the texts.
        sections: sections whose texts are read; sections that the recipe lacks are skipped.
        model: folder of a model to read instead of the recipe's, which must be dense.
        teacher: source of another model that the caller reads, which is looked up too.

    Raises:
        RecipeError: a model, text or layer does not exist, the evaluation text is also used for calibration or
            finetuning, the recipe's model is already compressed, or a text or window does not suit the model; the
            message names the section, and every problem that shows before the model is read.
        CheckpointError: the model cannot be read.
        MissingDependencyError: transformers is not installed.
    """
    require_inputs(recipe, sections, model=model, teacher=teacher)
    if model is not None:
        language = read_model(model, dtype=recipe.dtype, device=recipe.device)
    else:
        language = read_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
        if compressed_layers(language.model):
            raise RecipeError(f"{recipe.model} is already compressed; start from the dense model, or convert it first")
    texts: dict[str, Any] = {}
    for name in sections:
        section = getattr(recipe, name)
        if section is None:
            continue
        try:
            require_window(language.model, section.window)
            tokens = read_tokens(section.text, language.tokenizer)
            require_vocabulary(language.model, tokens)
            if name == "evaluation":
                _require_windows(section, section.text, tokens)
                texts["evaluation"] = tokens
                texts["also"] = {text.name: _read_also(language, section, text) for text in section.also}
            elif name == "calibration":
                count = _HELD_OUT_OF_BLOCKS if recipe.refine or recipe.sequential else _HELD_OUT
                used = section.windows
                if used is None:
                    used = _enough(language.model, len(tokens), section.window, count)
                    logger.info(
                        "calibration on %d windows of %s; --calibration-windows asks for more or less",
                        used,
                        section.text,
                    )
                texts["calibration"] = windows(tokens, section.window, used)
                texts["held_out"] = spare_windows(tokens, section.window, used, count)
            else:
                texts["training"] = torch.cat(windows(tokens, section.window, section.windows))
        except MPOError as error:
            raise RecipeError(f"{name}: {error}") from error
    return Inputs(recipe, language, **texts)


def _read_also(language: LanguageModel, evaluation: Evaluation, text: Path) -> Tensor:
    tokens = read_tokens(text, language.tokenizer)
    require_vocabulary(language.model, tokens)
    _require_windows(evaluation, text, tokens)
    return tokens


def _require_windows(evaluation: Evaluation, text: Path, tokens: Tensor) -> None:
    """Check that a text has enough windows, before hours of other work, and say how many are used."""
    used, every = counted(len(tokens), evaluation.window, evaluation.windows, evaluation.stride)
    if evaluation.windows is None and used < every:
        logger.info(
            "evaluation on %d of the %s windows of %s, spread evenly; --evaluate-windows all uses all",
            *(used, f"{every:,}", text),
        )


def _enough(model: nn.Module, total: int, window: int, spare: int) -> int:
    """Windows of a calibration text of ``total`` tokens that are used by default; some are left to be held out."""
    every = len(starts(total, window, None))
    wanted = enough_windows(dense_layers(model).values(), window)
    return max(1, min(wanted, every - spare if every > 2 * spare else every))


def enough_windows(layers: Iterable[nn.Module], window: int) -> int:
    """Calibration windows that are used by default, of a text that is long enough.

    Args:
        layers: dense linear layers.
        window: tokens of a window.

    Example:
        >>> enough_windows([nn.Linear(1536, 576)], 512)
        48
    """
    widest = max((shape[1] for layer in layers if (shape := dense_shape(layer)) is not None), default=0)
    return max(_LEAST_WINDOWS, math.ceil(_ROWS_PER_INPUT * widest / window))


def read_model(
    source: str | Path, *, dtype: str = "auto", device: str = "cpu", role: str = "the model"
) -> LanguageModel:
    """Read and log a language model with its tokenizer, see :func:`mpochain.language.load_language_model`.

    Args:
        source: folder, ``.gguf`` file, or name on the Hugging Face hub.
        dtype: dtype of the weights; ``"auto"`` for the stored dtype.
        device: where the model is put.
        role: purpose of the model, for the log.

    Raises:
        CheckpointError: the model cannot be read.
        ArgumentError: the device is not there.
        MissingDependencyError: transformers is not installed.
    """
    logger.info("reading %s, %s", role, source)
    return load_language_model(source, dtype=dtype, device=device)


def evaluate(model: nn.Module, tokens: Tensor, evaluation: Evaluation, counter: Counter | None = None) -> Perplexity:
    """Measure perplexity on the windows of a recipe's evaluation.

    Args:
        model: causal language model.
        tokens: tokens of the evaluation text, ``(n,)``.
        evaluation: window, stride and number of windows.
        counter: called with the number of windows done and the total number.

    Raises:
        CorpusError: the text has fewer windows.
        NonFiniteError: the model predicts NaN.
    """
    used, _ = counted(len(tokens), evaluation.window, evaluation.windows, evaluation.stride)
    return perplexity(
        model,
        tokens,
        window=evaluation.window,
        stride=evaluation.stride,
        count=used,
        progress=counter,
    )
