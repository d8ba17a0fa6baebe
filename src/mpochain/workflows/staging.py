"""Distillation in several stages: some layers are made smaller, the model learns, the next ones are made smaller."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.checkpoint import require_replaceable
from mpochain.errors import MPOError, RecipeError
from mpochain.language import (
    LanguageModel,
    load_language_model,
    read_tokens,
    require_window,
    save_language_model,
    windows,
)
from mpochain.report import provenance
from mpochain.surgery import absorb_orders
from mpochain.surgery.calls import logits_of
from mpochain.system.files import write_bytes
from mpochain.train import TrainResult, finetune
from mpochain.train.finetuning import rehearse
from mpochain.workflows.compressing import Counter, Log, evaluate, require_dense
from mpochain.workflows.groups import make_smaller, require_groups
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.staged_work import StagedWork
from mpochain.workflows.texts import require_unseen

__all__ = ["RECORD", "Distilled", "distill_by"]

# What was done, beside the model.
RECORD = "distillation.json"

# Beside the result until it is there.
_WORK = "stages"

# Settings of a recipe that are of other jobs.
_UNUSED = {"budget", "method", "sequential", "targets", "ignore", "comparison"}

# What is known of a stage: its layers, perplexity before it learns and after, and the training.
_PARTS = ("layers", "before", "training", "after")


@dataclass(frozen=True)
class Distilled:
    """What came out.

    Attributes:
        language: the smaller model.
        parameters: of the whole model, before and after.
        dense: perplexity of the dense model, ready for JSON; None without an evaluation.
        stages: what was done in each, ready for JSON.
        provenance: versions, machine, threads, commit.
    """

    language: LanguageModel
    parameters: tuple[int, int]
    dense: dict[str, Any] | None
    stages: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "dense": self.dense,
            "stages": list(self.stages),
            "provenance": self.provenance,
        }


def distill_by(
    recipe: Recipe,
    out: Path,
    *,
    teacher_cache: Path | None = None,
    command: str = "",
    log: Log = lambda _: None,
    counter: Callable[[str], Counter] | None = None,
) -> Distilled:
    """Go through the stages of a recipe and write the result; after an interruption the same call goes on.

    Everything a stage names is checked before the first of them begins. The teacher is the dense model, which never
    changes and is not written.

    Args:
        recipe: with stages and the section healing.
        out: folder for the smaller model and ``distillation.json``; what is needed to go on is kept there meanwhile.
        teacher_cache: folder for the teacher's logits, see :func:`mpochain.finetune`.
        command: what makes it again, for the record.
        log: told what is done.
        counter: makes what is told how far an evaluation has come, from its label.

    Raises:
        RecipeError: no stages, no text, layers the model has not or that are named twice, factors that do not divide
            one, training that is not possible, settings that stages do not use, an evaluation on what the model has
            seen, a teacher of another vocabulary, or the folder of the dense model to write to.
        CheckpointError: a model that cannot be read, or the work of another recipe in the folder.
        KeyboardInterrupt: after Ctrl-C; the state is kept.
        MPOError: whatever a step raises.
    """
    if not recipe.stages:
        raise RecipeError("no stages are given; each says which layers are made smaller before the model learns")
    if recipe.healing is None:
        raise RecipeError("no text to learn from is given; it is never one that the model is evaluated on")
    unused = sorted(recipe.model_fields_set & _UNUSED)
    if unused:
        raise RecipeError(f"{unused[0]} is not used with stages; say it in the groups of a stage")
    for source in (recipe.model, recipe.healing.teacher):
        if source is not None and Path(source).exists() and Path(source).resolve() == out.resolve():
            raise RecipeError(f"{out} is the dense model itself; name another folder")
    require_unseen(recipe)
    require_replaceable(out)
    work = StagedWork(out / _WORK, recipe)
    log(f"reading {recipe.model}")
    dense = load_language_model(recipe.model, dtype=recipe.dtype)
    require_dense(dense.model, recipe.model)
    pieces = torch.cat(
        windows(read_tokens(recipe.healing.text, dense.tokenizer), recipe.healing.window, recipe.healing.windows)
    )
    _check(recipe, dense, pieces, cached=teacher_cache is not None)
    teacher = dense.model
    if recipe.healing.teacher is not None and recipe.healing.teacher != recipe.model:
        log(f"reading the teacher, {recipe.healing.teacher}")
        teacher = load_language_model(recipe.healing.teacher, dtype=recipe.dtype).model
    _require_one_vocabulary(dense.model, teacher)
    text = None if recipe.evaluation is None else read_tokens(recipe.evaluation.text, dense.tokenizer)

    def measured(model: nn.Module, label: str) -> dict[str, Any] | None:
        if text is None or recipe.evaluation is None:
            return None
        found = evaluate(model, text, recipe.evaluation, counter and counter(label))
        log(f"perplexity, {label}: {found.perplexity:.2f}")
        return found.as_dict()

    batches = None
    if recipe.calibration is not None:
        require_window(dense.model, recipe.calibration.window)
        tokens = read_tokens(recipe.calibration.text, dense.tokenizer)
        batches = windows(tokens, recipe.calibration.window, recipe.calibration.windows)
    work.remember("dense", partial(measured, dense.model, "dense"))
    # The model that changes, beside the teacher that does not.
    language = load_language_model(work.latest() or recipe.model, dtype=recipe.dtype)
    for stage in recipe.stages:
        if work.has(stage.name, "learnt"):
            continue
        work.begin(stage)
        if not work.has(stage.name, "smaller"):
            layers = make_smaller(
                stage,
                language.model,
                tokenizer=language.tokenizer,
                calibration=batches,
                seed=recipe.seed,
                log=log,
            )
            work.save(language, stage.name, "smaller", {f"{stage.name}: layers": layers})
        work.remember(f"{stage.name}: before", partial(measured, language.model, f"{stage.name}, smaller"))
        config = recipe.training_of(stage)
        log(f"stage {stage.name}: {config.steps} steps")
        result = finetune(
            language.model,
            pieces,
            config=config,
            teacher=teacher if config.asks_teacher else None,
            checkpoint=work.folder / f"{stage.name}.state",
            teacher_cache=teacher_cache if config.asks_teacher else None,
            label=stage.name,
        )
        work.remember(f"{stage.name}: training", partial(_training, result))
        work.remember(f"{stage.name}: after", partial(measured, language.model, f"{stage.name}, learnt"))
        work.save(language, stage.name, "learnt")
    # Not before: hidden features would no longer be those of the teacher.
    folded = absorb_orders(language.model)
    if folded:
        log(f"{folded} orders of features are taken over by neighbouring layers")
    save_language_model(language, out)
    outcome = Distilled(
        language,
        (_parameters(dense.model), _parameters(language.model)),
        work.recall("dense"),
        tuple(
            {"name": stage.name, **{part: work.recall(f"{stage.name}: {part}") for part in _PARTS}}
            for stage in recipe.stages
        ),
        provenance(threads=torch.get_num_threads(), commit=True),
    )
    record = {
        "format": 1,
        "command": command,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        **outcome.as_dict(),
    }
    # Before what could make it again is gone.
    write_bytes(out / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    work.remove()
    return outcome


def _training(result: TrainResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "losses": [round(loss, 5) for loss in result.losses],
    }


def _check(recipe: Recipe, language: LanguageModel, pieces: Tensor, *, cached: bool) -> None:
    """Refuse what would fail in a later stage, before the first."""
    require_groups(recipe, language)
    for stage in recipe.stages:
        config = recipe.training_of(stage)
        try:
            rehearse(language.model, pieces, config=config, cached=cached and config.asks_teacher)
        except MPOError as error:
            raise RecipeError(f"stage {stage.name}: {error}") from error


@torch.no_grad()
def _require_one_vocabulary(model: nn.Module, teacher: nn.Module) -> None:
    if teacher is model:
        return
    token = torch.zeros(1, 2, dtype=torch.long)
    sizes = [int(logits_of(each(token)).shape[-1]) for each in (model, teacher)]
    if sizes[0] != sizes[1]:
        raise RecipeError(f"the teacher's vocabulary of {sizes[1]:,} is not the model's of {sizes[0]:,}")


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
