"""A compressed model healed by a recipe, with what it was and what it became."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mpochain.checkpoint import require_replaceable
from mpochain.errors import RecipeError
from mpochain.language import LanguageModel, Perplexity, load_language_model, read_tokens, save_language_model, windows
from mpochain.report import provenance
from mpochain.system.memory import peak_resident
from mpochain.train import TrainResult, finetune
from mpochain.workflows.compressing import Counter, Log, evaluate
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import require_unseen

__all__ = ["Healed", "heal_by"]

_STATE = "healing.state"


@dataclass(frozen=True)
class Healed:
    """What came out.

    Attributes:
        language: the healed model.
        result: of the training.
        before: perplexity as it was compressed; None without an evaluation, or after an interruption.
        after: perplexity as it is healed.
        peak_bytes: the most memory that the process had, libraries and all.
        provenance: versions, machine, threads, commit.
    """

    language: LanguageModel
    result: TrainResult
    before: Perplexity | None
    after: Perplexity | None
    peak_bytes: int | None
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "perplexity": {
                "before": self.before.as_dict() if self.before is not None else None,
                "after": self.after.as_dict() if self.after is not None else None,
            },
            "training": {
                "steps": self.result.steps,
                "tokens": self.result.tokens,
                "seconds": self.result.seconds,
                "tokens_per_second": self.result.tokens_per_second,
                "losses": [round(loss, 5) for loss in self.result.losses],
            },
            "peak_bytes": self.peak_bytes,
            "provenance": self.provenance,
        }


def heal_by(
    recipe: Recipe,
    folder: Path,
    out: Path,
    *,
    log: Log = lambda _: None,
    counter: Callable[[str], Counter] | None = None,
    evaluated: Literal["both", "after"] = "both",
) -> Healed:
    """Heal a compressed model and write it; after an interruption the same call goes on from its last checkpoint.

    Args:
        recipe: with the section healing.
        folder: of the compressed model.
        out: folder for the healed one, another one; the state of the run is kept there meanwhile.
        log: told what is done.
        counter: makes what is told how far an evaluation has come, from its label.
        evaluated: whether the compressed model is evaluated too.

    Raises:
        RecipeError: no healing in the recipe, an evaluation on what the model has seen, or one folder for both models.
        CheckpointError: a model that cannot be read, or a state of another run.
        KeyboardInterrupt: after Ctrl-C; the state is kept.
        MPOError: whatever a step raises.
    """
    if recipe.healing is None:
        raise RecipeError("no text to heal on is given; it is never one that the model is evaluated on")
    if folder.resolve() == out.resolve():
        raise RecipeError(f"{out} is the model itself; name another folder")
    require_unseen(recipe)
    healing = recipe.healing
    require_replaceable(out)
    log(f"reading {folder}")
    language = load_language_model(folder)
    teacher = None
    if healing.training.asks_teacher:
        source = healing.teacher or recipe.model
        if Path(source).exists() and Path(source).resolve() == folder.resolve():
            raise RecipeError(
                f"{folder} would be its own teacher; name the dense model, or heal on the text alone: distillation 0"
            )
        log(f"reading the teacher, {source}")
        # Its products are rounded all the same, and a narrow copy of its weights is not made at every step.
        teacher = load_language_model(source, dtype=healing.training.autocast or recipe.dtype).model
    pieces = torch.cat(windows(read_tokens(healing.text, language.tokenizer), healing.window, healing.windows))
    text = None if recipe.evaluation is None else read_tokens(recipe.evaluation.text, language.tokenizer)
    state = out / _STATE
    before = after = None
    if text is not None and recipe.evaluation is not None and evaluated == "both" and not state.exists():
        before = evaluate(language.model, text, recipe.evaluation, counter and counter("compressed"))
        log(f"perplexity before healing: {before.perplexity:.2f}")
    result = finetune(language.model, pieces, config=healing.training, teacher=teacher, checkpoint=state)
    del teacher
    peak = peak_resident()
    if text is not None and recipe.evaluation is not None:
        after = evaluate(language.model, text, recipe.evaluation, counter and counter("healed"))
        log(f"perplexity after healing: {after.perplexity:.2f}")
    save_language_model(language, out)
    state.unlink()
    return Healed(language, result, before, after, peak, provenance(threads=torch.get_num_threads(), commit=True))
