"""Recipe-driven finetuning of a compressed model, with perplexity before and after."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mpochain.distributed import shard_blocks, team_of_group, whole_on_first
from mpochain.errors import RecipeError
from mpochain.execution import predicted_plans
from mpochain.language import LanguageModel, Perplexity
from mpochain.report import provenance
from mpochain.surgery.fingerprint import fingerprint, fingerprint_of_data
from mpochain.system.memory import peak_resident
from mpochain.system.progress import Counters, uncounted
from mpochain.train import TrainResult, finetune
from mpochain.workflows.begun import Begun
from mpochain.workflows.former_names import existing_file
from mpochain.workflows.inputs import Inputs, Section, read_inputs, read_model
from mpochain.workflows.json_file import write_json
from mpochain.workflows.model_card import tell_of_finetuning
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.result_folder import result_folder, save_result
from mpochain.workflows.sharding import require_several, shard_for_training

__all__ = ["RECORD", "Finetuned", "finetune_by"]

# Record of the finished run in the model's folder, the state of an unfinished one, and what it measured so far.
RECORD = "finetune.json"
_STATE = "finetune.state"
_BEGUN = "finetune.begun.json"


@dataclass(frozen=True)
class Finetuned:
    """Finetuned model with the result of its training and measurements.

    Attributes:
        language: finetuned model.
        result: result of the training.
        before: perplexity of the compressed model; None without an evaluation.
        after: perplexity of the finetuned model; None without an evaluation.
        also: both, the first None if not measured, on each further text of the evaluation, by file name.
        peak_bytes: peak memory of the process, libraries included.
        provenance: versions, machine, threads, commit.
    """

    language: LanguageModel
    result: TrainResult
    before: Perplexity | None
    after: Perplexity | None
    also: Mapping[str, tuple[Perplexity | None, Perplexity]]
    peak_bytes: int | None
    provenance: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the model, as a dictionary for JSON."""
        return {
            "perplexity": {
                "before": self.before.as_dict() if self.before is not None else None,
                "after": self.after.as_dict() if self.after is not None else None,
                "also": {
                    name: {"before": None if before is None else before.as_dict(), "after": after.as_dict()}
                    for name, (before, after) in self.also.items()
                },
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


@predicted_plans()
def finetune_by(
    recipe: Recipe,
    folder: Path,
    out: Path,
    *,
    counters: Counters = uncounted,
    evaluated: Literal["both", "after"] = "both",
    command: str = "",
    overwrite: bool = False,
) -> Finetuned:
    """Finetune a compressed model and write it; after an interruption, the same call resumes from the last checkpoint.

    The model, its tokenizer and ``finetune.json`` are written in one step, which also removes the state of the run.

    Args:
        recipe: recipe with the section ``finetune``.
        folder: folder of the compressed model.
        out: another folder for the finetuned model; also holds the state of the unfinished run.
        counters: returns the progress counter of an evaluation for its label.
        evaluated: ``"both"`` to evaluate the compressed model too.
        command: command that reproduces the result, for the record.
        overwrite: whether a finished model in ``out`` is replaced.

    Raises:
        RecipeError: the section ``finetune`` is missing, the evaluation text is also used for calibration or
            finetuning, both models have the same folder, or the model cannot be sharded.
        CheckpointError: a model cannot be read, or the state belongs to another run.
        OutputError: ``out`` holds a finished model or cannot be written, or another process writes to it.
        KeyboardInterrupt: after Ctrl-C; the state is saved.
        MPOError: a step fails.
    """
    if recipe.finetune is None:
        raise RecipeError("the text to finetune on is missing; name one that is not used for evaluation")
    if folder.resolve() == out.resolve():
        raise RecipeError(f"{out} is the folder of the compressed model; name another folder")
    require_several(recipe)
    teacher_source = _teacher_source(recipe, folder)
    team = team_of_group()
    with ExitStack() as held:
        with team.together():
            if team.is_first:
                unfinished = existing_file(out, _STATE).name, _BEGUN
                held.enter_context(result_folder(out, overwrite=overwrite, unfinished=unfinished))
        return _finetune(recipe, folder, out, teacher_source, evaluated=evaluated, command=command, counters=counters)


def _teacher(recipe: Recipe, source: str | None) -> nn.Module | None:
    if source is None:
        return None
    assert recipe.finetune is not None
    # Autocast rounds the teacher's products in any case; weights in that dtype need no cast at every step.
    dtype = recipe.finetune.training.autocast or recipe.dtype
    return read_model(source, dtype=dtype, device=recipe.device, role="the teacher").model


def _finetune(
    recipe: Recipe,
    folder: Path,
    out: Path,
    teacher_source: str | None,
    *,
    evaluated: Literal["both", "after"],
    command: str,
    counters: Counters,
) -> Finetuned:
    assert recipe.finetune is not None
    team, shards = team_of_group(), recipe.finetune.shard
    # Of several processes the first one measures and writes. A sharded model computes in all of them together.
    measures = team.is_first or shards
    with team.together():
        sections: tuple[Section, ...] = ("finetune", "evaluation") if measures else ("finetune",)
        inputs = read_inputs(recipe, *sections, model=folder, teacher=teacher_source)
        model, windows = inputs.language.model, inputs.training
        assert windows is not None  # because the recipe has a section finetune
        teacher = _teacher(recipe, teacher_source)
        state = existing_file(out, _STATE)
        begun = Begun(out / _BEGUN, _identity(inputs)) if team.is_first else None
        compared = evaluated == "both" and not state.exists()
        if begun is not None and compared and not shards:
            begun.keep(_measured(inputs, counters))
    if shards:
        shard_for_training(model)
        if teacher is not None:
            shard_blocks(teacher)
        if team.from_first(compared):
            measured = _measured(inputs, counters)
            if begun is not None:
                begun.keep(measured)
    result = finetune(model, windows, config=recipe.finetune.training, teacher=teacher, checkpoint=state, share=True)
    del teacher  # free its memory before evaluation and saving
    peak = peak_resident()
    after = inputs.perplexity(model, "finetuned", counters) if measures else None
    also_after = inputs.perplexities_of_also(model, "finetuned", counters) if measures else {}
    before = begun.kept.get("before") if begun is not None else None
    also_before = begun.kept.get("also", {}) if begun is not None else {}
    finetuned = Finetuned(
        inputs.language,
        result,
        None if before is None else Perplexity(**before),
        after,
        {
            name: (Perplexity(**also_before[name]) if name in also_before else None, value)
            for name, value in also_after.items()
        },
        peak,
        provenance(threads=torch.get_num_threads(), commit=True),
    )
    with whole_on_first(model, is_first=team.is_first):
        if team.is_first:
            settings = recipe.model_dump(mode="json", exclude_none=True)
            record = {"format": 1, "command": command, "recipe": settings, **finetuned.as_dict()}
            tell_of_finetuning(model, recipe, command, finetuned.before, after, finetuned.also)
            save_result(inputs.language, out, lambda new: write_json(new / RECORD, record))
    return finetuned


def _measured(inputs: Inputs, counters: Counters) -> dict[str, Any]:
    """Perplexities of the compressed model, ready for JSON."""
    model = inputs.language.model
    perplexity = inputs.perplexity(model, "compressed", counters)
    also = inputs.perplexities_of_also(model, "compressed", counters)
    return {
        "before": None if perplexity is None else asdict(perplexity),
        "also": {name: asdict(value) for name, value in also.items()},
    }


def _identity(inputs: Inputs) -> dict[str, Any]:
    """What identifies a run, beyond what its training state records."""
    identity: dict[str, Any] = {"weights": fingerprint(inputs.language.model), "evaluation": None}
    if inputs.evaluation is not None and inputs.recipe.evaluation is not None:
        settings = inputs.recipe.evaluation.model_dump(mode="json", exclude={"text", "also"})
        identity["evaluation"] = {**settings, "tokens": fingerprint_of_data([inputs.evaluation, *inputs.also.values()])}
    return identity


def _teacher_source(recipe: Recipe, student: Path) -> str | None:
    """Source of the dense teacher; None if no loss uses a teacher."""
    assert recipe.finetune is not None
    if not recipe.finetune.training.asks_teacher:
        return None
    source = recipe.finetune.teacher or recipe.model
    if Path(source).exists() and Path(source).resolve() == student.resolve():
        raise RecipeError(
            f"{student} would be its own teacher; name the dense model as teacher, or set distillation to 0 to learn "
            "only from the text"
        )
    return source
