"""Staged distillation: compress some layers, finetune with the dense teacher, compress the next layers."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.distributed import shard_blocks, team_of_group, whole_on_first
from mpochain.errors import MPOError, RecipeError
from mpochain.execution import predicted_plans
from mpochain.language import LanguageModel, load_language_model
from mpochain.report import provenance
from mpochain.surgery import absorb_orders
from mpochain.surgery.calls import logits_of
from mpochain.surgery.fingerprint import fingerprint
from mpochain.system.progress import Counters, uncounted
from mpochain.train import TrainResult, finetune
from mpochain.train.finetuning import rehearse
from mpochain.workflows.distilled import Distilled, training_record
from mpochain.workflows.groups import compress_stage, require_groups
from mpochain.workflows.inputs import Inputs, read_inputs, read_model
from mpochain.workflows.json_file import write_json
from mpochain.workflows.recipe import Recipe, Stage
from mpochain.workflows.result_folder import result_folder, save_result
from mpochain.workflows.sharding import require_several, shard_for_training
from mpochain.workflows.staged_work import StagedWork

__all__ = ["RECORD", "Distilled", "distill_by"]

logger = logging.getLogger(__name__)

# Record of the finished run in the model's folder, and the subfolder of an unfinished one.
RECORD = "distillation.json"
_WORK = "stages"

# Recipe fields for single compressions and comparisons, which stages do not use.
_UNUSED = {
    *("budget", "method", "settings", "sequential", "refine", "stream", "speed", "stage_budgets", "targets", "ignore"),
    "comparison",
}

# Results of a stage: its layers, perplexity before and after finetuning, and the training.
_PARTS = ("layers", "before", "training", "after")


@predicted_plans()
def distill_by(
    recipe: Recipe,
    out: Path,
    *,
    teacher_cache: Path | None = None,
    command: str = "",
    overwrite: bool = False,
    counters: Counters = uncounted,
) -> Distilled:
    """Run the stages of a recipe and write the result; after an interruption, the same call resumes.

    The model, its tokenizer and the record are written in one step, which also removes the state of the run.

    All stages are checked before the first one starts. The teacher is the dense model, or the one named in the section
    ``finetune``; it never changes and is not written.

    Of several processes the first one compresses, evaluates and writes, and all share every batch of a training.

    Args:
        recipe: recipe with stages and the section ``finetune``.
        out: folder for the compressed model and ``distillation.json``; also holds the state of the unfinished run.
        teacher_cache: folder for the teacher's logits, see :func:`mpochain.finetune`.
        command: command that reproduces the result, for the record.
        overwrite: whether a finished model in ``out`` is replaced.
        counters: returns the progress counter of an evaluation for its label.

    Raises:
        RecipeError: stages or the training text are missing, the model lacks a layer, a layer is named twice, settings
            do not suit a layer, a training is impossible, a field is not used with stages, the evaluation text is also
            used for calibration or finetuning, the teacher has another vocabulary, or ``out`` is the dense model.
        CheckpointError: a model cannot be read, or the folder contains the work of another recipe.
        OutputError: ``out`` holds a finished model or cannot be written, or another process writes to it.
        KeyboardInterrupt: after Ctrl-C; the state is saved.
        MPOError: a step fails.
    """
    _require_stages(recipe, out)
    require_several(recipe)
    team = team_of_group()
    if teacher_cache is not None and not team.is_alone:
        raise RecipeError(f"{team.size} processes cannot share a cache of the teacher's logits; leave it out")
    with ExitStack() as held:
        with team.together():
            if team.is_first:
                held.enter_context(result_folder(out, overwrite=overwrite, unfinished=(_WORK,)))
        if not team.is_first:
            return _followed(recipe, out)
        return _distill(recipe, out, teacher_cache=teacher_cache, command=command, counters=counters)


def _followed(recipe: Recipe, out: Path) -> Distilled:
    """The distillation in a process that shares the trainings of the first one, which does everything else."""
    team = team_of_group()
    with team.together():
        inputs = read_inputs(recipe, "finetune", teacher=_teacher_source(recipe))
        teacher = _teacher(recipe, inputs.language.model)
    language = inputs.language
    if inputs.shards:
        shard_blocks(teacher)
    for stage in recipe.stages:
        with team.together():
            pass  # the first one compresses
        folder = team.from_first("")
        if not folder:
            continue  # finished before
        with team.together():
            language = load_language_model(folder, dtype=recipe.dtype, device=recipe.device)
        _train(stage, language.model, inputs, teacher, out / _WORK, None)
        with whole_on_first(language.model, is_first=False), team.together():
            pass  # the first one saves
        with team.together():
            pass  # the first one evaluates
    parameters, dense, stages, source = team.from_first(_results(None))
    return Distilled(language, parameters, dense, stages, source)


def _distill(recipe: Recipe, out: Path, *, teacher_cache: Path | None, command: str, counters: Counters) -> Distilled:
    team = team_of_group()
    with team.together():
        work = StagedWork(out / _WORK, recipe)
        inputs = read_inputs(recipe, "calibration", "evaluation", "finetune", teacher=_teacher_source(recipe))
        dense = inputs.language.model
        _require_possible(inputs, cached=teacher_cache is not None)
        teacher_model = _teacher(recipe, dense)
        work.require({"weights of the model": fingerprint(dense), "weights of the teacher": fingerprint(teacher_model)})
        distillation = _Distillation(inputs, teacher_model, teacher_cache, work, counters)
        work.remember("dense", partial(distillation.perplexity, dense, "dense"))
        # The student is loaded separately, because the teacher must not change.
        language = load_language_model(work.latest() or recipe.model, dtype=recipe.dtype, device=recipe.device)
    if inputs.shards:
        shard_blocks(teacher_model)
    for stage in recipe.stages:
        language = distillation.run(stage, language)
    # Absorbed last, because absorbing changes the order of hidden features, which must match the teacher's.
    absorbed = absorb_orders(language.model)
    if absorbed:
        logger.info("neighbouring layers absorbed %d orders of features", absorbed)
    result = Distilled(
        language,
        (_parameters(dense), _parameters(language.model)),
        work.recall("dense"),
        tuple(
            {"name": stage.name, **{part: work.recall(f"{stage.name}: {part}") for part in _PARTS}}
            for stage in recipe.stages
        ),
        provenance(threads=torch.get_num_threads(), commit=True),
    )
    settings = recipe.model_dump(mode="json", exclude_none=True)
    record = {"format": 1, "command": command, "recipe": settings, **result.as_dict()}
    save_result(language, out, lambda new: write_json(new / RECORD, record))
    team.from_first(_results(result))
    return result


def _results(result: Distilled | None) -> Any:
    """All but the model, for other processes."""
    return None if result is None else (result.parameters, result.dense, result.stages, result.provenance)


def _train(
    stage: Stage, model: nn.Module, inputs: Inputs, teacher: nn.Module, folder: Path, teacher_cache: Path | None
) -> TrainResult:
    """Finetune the model of a stage, in all processes."""
    if inputs.shards:
        shard_for_training(model)
    config = inputs.recipe.training_of(stage)
    return finetune(
        model,
        _windows(inputs),
        config=config,
        teacher=teacher if config.asks_teacher else None,
        checkpoint=folder / f"{stage.name}.state",
        teacher_cache=teacher_cache if config.asks_teacher else None,
        share=True,
        label=stage.name,
    )


@dataclass(frozen=True)
class _Distillation:
    """Inputs and state that all stages share."""

    inputs: Inputs
    teacher: nn.Module
    teacher_cache: Path | None
    work: StagedWork
    counters: Counters

    def run(self, stage: Stage, language: LanguageModel) -> LanguageModel:
        """Compress the layers of a stage and finetune the model, resuming an interrupted run; return the result."""
        recipe, work, model, team = self.inputs.recipe, self.work, language.model, team_of_group()
        finished = work.has(stage.name, "learnt")
        with team.together():
            if not finished:
                work.begin(stage)
                self._make_smaller(stage, language)
        folder = team.from_first("" if finished else str(work.latest()))
        if not folder:
            return language
        with team.together():
            pass  # the others read the model
        logger.info("stage %s: %d steps", stage.name, recipe.training_of(stage).steps)
        result = _train(stage, model, self.inputs, self.teacher, work.folder, self.teacher_cache)
        with whole_on_first(model, is_first=True), team.together():
            written = work.write(language, stage.name, "learnt")
        if self.inputs.shards:  # what was sharded once is called in all processes
            language = load_language_model(str(written), dtype=recipe.dtype, device=recipe.device)
        with team.together():
            work.remember(f"{stage.name}: training", partial(training_record, result))
            work.remember(f"{stage.name}: after", partial(self.perplexity, language.model, f"{stage.name}, finetuned"))
            work.finish(stage.name, "learnt")
        return language

    def _make_smaller(self, stage: Stage, language: LanguageModel) -> None:
        work, seed, calibration = self.work, self.inputs.recipe.seed, self.inputs.calibration
        if not work.has(stage.name, "smaller"):
            tokenizer = language.tokenizer
            layers = compress_stage(stage, language.model, tokenizer=tokenizer, calibration=calibration, seed=seed)
            work.save(language, stage.name, "smaller", {f"{stage.name}: layers": layers})
        work.remember(f"{stage.name}: before", partial(self.perplexity, language.model, f"{stage.name}, compressed"))

    def perplexity(self, model: nn.Module, label: str) -> dict[str, Any] | None:
        """Measure perplexity on the evaluation text, ready for JSON; None without one."""
        result = self.inputs.perplexity(model, label, self.counters)
        return None if result is None else result.as_dict()


def _require_stages(recipe: Recipe, out: Path) -> None:
    """Check that a recipe describes a staged distillation, before anything is read."""
    if not recipe.stages:
        raise RecipeError("stages are missing; each names the layers to compress before the model is finetuned")
    if recipe.finetune is None:
        raise RecipeError("the text to learn from is missing; name one that is not used for evaluation")
    unused = sorted(recipe.model_fields_set & _UNUSED)
    if unused:
        raise RecipeError(f"{unused[0]} is not used with stages; set it in the groups of a stage")
    if recipe.evaluation is not None and recipe.evaluation.also:
        raise RecipeError(
            "evaluation.also is not used with stages; measure the finished model on further texts with mpochain eval"
        )
    for source in (recipe.model, recipe.finetune.teacher):
        if source is not None and Path(source).exists() and Path(source).resolve() == out.resolve():
            raise RecipeError(f"{out} is the folder of the dense model; name another folder")


def _require_possible(inputs: Inputs, *, cached: bool) -> None:
    """Check everything that could fail in a later stage, before the first stage starts."""
    require_groups(inputs.recipe, inputs.language)
    for stage in inputs.recipe.stages:
        config = inputs.recipe.training_of(stage)
        try:
            rehearse(inputs.language.model, _windows(inputs), config=config, cached=cached and config.asks_teacher)
        except MPOError as error:
            raise RecipeError(f"stage {stage.name}: {error}") from error


def _teacher_source(recipe: Recipe) -> str | None:
    return None if recipe.finetune is None else recipe.finetune.teacher


@torch.no_grad()
def _teacher(recipe: Recipe, dense: nn.Module) -> nn.Module:
    """Return the teacher: the dense model, or another model with the same vocabulary."""
    source = _teacher_source(recipe)
    if source is None or source == recipe.model:
        return dense
    teacher = read_model(source, dtype=recipe.dtype, device=recipe.device, role="the teacher").model
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(teacher.parameters()).device)
    size, teacher_size = (int(logits_of(model(tokens)).shape[-1]) for model in (dense, teacher))
    if size != teacher_size:
        raise RecipeError(f"the teacher has a vocabulary of {teacher_size:,} and the model one of {size:,}")
    return teacher


def _windows(inputs: Inputs) -> Tensor:
    assert inputs.training is not None  # because _require_stages requires the section finetune
    return inputs.training


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
