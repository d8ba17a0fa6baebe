"""Perplexity and generated texts of a model of a recipe, each measured once and kept."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from torch import nn

from mpochain.language import Perplexity, generate
from mpochain.system.progress import Counters
from mpochain.workflows.inputs import Inputs
from mpochain.workflows.measurements import Measurements

__all__ = ["Measured"]

logger = logging.getLogger(__name__)

# Maximum number of tokens generated per prompt.
_GENERATED = 48


class Measured:
    """Measurements of one model, each made once and kept in the state of the run.

    Args:
        inputs: texts and tokenizer.
        measurements: keeps the results.
        label: name of the model in progress messages.
        counters: returns the progress counter for a label.
    """

    def __init__(self, inputs: Inputs, measurements: Measurements, label: str, counters: Counters) -> None:
        self._inputs, self._measurements, self._label, self._counters = inputs, measurements, label, counters

    def perplexity(self, model: nn.Module) -> Perplexity | None:
        """Perplexity on the evaluation text; None without one."""
        inputs = self._inputs
        if inputs.evaluation is None:
            return None

        def measure() -> dict[str, Any]:
            perplexity = inputs.perplexity(model, self._label, self._counters)
            assert perplexity is not None
            return asdict(perplexity)

        kept = self._measurements.remember(f"perplexity, {self._label}", inputs.evaluation_setting(), measure)
        return Perplexity(**kept)

    def perplexities_of_also(self, model: nn.Module) -> dict[str, Perplexity]:
        """Perplexity on each further text of the evaluation, by file name."""
        inputs = self._inputs
        if not inputs.also:
            return {}

        def measure() -> dict[str, Any]:
            measured = inputs.perplexities_of_also(model, self._label, self._counters)
            return {name: asdict(perplexity) for name, perplexity in measured.items()}

        kept = self._measurements.remember(f"further texts, {self._label}", inputs.also_setting(), measure)
        return {name: Perplexity(**fields) for name, fields in kept.items()}

    def texts(self, model: nn.Module, prompts: tuple[str, ...]) -> list[str]:
        """Texts generated from the prompts; empty without prompts."""
        if not prompts:
            return []

        def measure() -> list[str]:
            logger.info("generating text, %s", self._label)
            progress = self._counters(f"text, {self._label}")
            return generate(model, self._inputs.language.tokenizer, prompts, tokens=_GENERATED, progress=progress)

        kept: list[str] = self._measurements.remember(f"texts, {self._label}", {"prompts": list(prompts)}, measure)
        return kept
