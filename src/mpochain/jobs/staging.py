"""Distillation in several stages: some layers are made smaller, the model learns, the next ones are made smaller."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpochain.atomic import require_writable, write_bytes
from mpochain.compression import METHODS, Kronecker, compress, select
from mpochain.errors import CheckpointError, MPOError, RecipeError
from mpochain.jobs.compressing import Counter, Log, evaluate, require_dense
from mpochain.jobs.recipe import Group, Recipe, Stage
from mpochain.language import LanguageModel, load_language_model, read_tokens, save_language_model, windows
from mpochain.nn.dense import weight_and_bias
from mpochain.report import provenance
from mpochain.train import TrainResult, finetune
from mpochain.train.distillation import logits_of

__all__ = ["Distilled", "distill_by", "make_smaller"]

# Beside the result until it is there.
_WORK, _FOUND = "stages", "found.json"

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
    log: Log = lambda _: None,
    counter: Callable[[str], Counter] | None = None,
) -> Distilled:
    """Go through the stages of a recipe and write the result; after an interruption the same call goes on.

    Everything a stage names is checked before the first of them begins. The teacher is the dense model, which never
    changes and is not written.

    Args:
        recipe: with stages and the section healing.
        out: folder for the smaller model; what is needed to go on is kept there meanwhile.
        teacher_cache: folder for the teacher's logits, see :func:`mpochain.finetune`.
        log: told what is done.
        counter: makes what is told how far an evaluation has come, from its label.

    Raises:
        RecipeError: no stages, no text, layers the model has not or that are named twice, factors that do not divide
            one, or a teacher of another vocabulary.
        CheckpointError: a model that cannot be read, or the work of another recipe in the folder.
        KeyboardInterrupt: after Ctrl-C; the state is kept.
        MPOError: whatever a step raises.
    """
    if not recipe.stages:
        raise RecipeError("no stages are given; each says which layers are made smaller before the model learns")
    if recipe.healing is None:
        raise RecipeError("no text to learn from is given; it is never one that the model is evaluated on")
    work = _Work(out / _WORK, recipe)
    log(f"reading {recipe.model}")
    dense = load_language_model(recipe.model, dtype=recipe.dtype)
    require_dense(dense.model, recipe.model)
    _check(recipe, dense.model)
    teacher = dense.model
    if recipe.healing.teacher is not None and recipe.healing.teacher != recipe.model:
        log(f"reading the teacher, {recipe.healing.teacher}")
        teacher = load_language_model(recipe.healing.teacher, dtype=recipe.dtype).model
    _require_one_vocabulary(dense.model, teacher)
    pieces = torch.cat(
        windows(read_tokens(recipe.healing.text, dense.tokenizer), recipe.healing.window, recipe.healing.windows)
    )
    text = None if recipe.evaluation is None else read_tokens(recipe.evaluation.text, dense.tokenizer)

    def measured(model: nn.Module, label: str) -> dict[str, Any] | None:
        if text is None or recipe.evaluation is None:
            return None
        found = evaluate(model, text, recipe.evaluation, counter and counter(label))
        log(f"perplexity, {label}: {found.perplexity:.2f}")
        return found.as_dict()

    batches = None
    if recipe.calibration is not None:
        tokens = read_tokens(recipe.calibration.text, dense.tokenizer)
        batches = windows(tokens, recipe.calibration.window, recipe.calibration.windows)
    work.remember("dense", partial(measured, dense.model, "dense"))
    # The model that changes, beside the teacher that does not.
    language = load_language_model(work.latest() or recipe.model, dtype=recipe.dtype)
    for stage in recipe.stages:
        if work.has(stage.name, "learnt"):
            continue
        if not work.has(stage.name, "smaller"):
            layers = make_smaller(stage, language.model, calibration=batches, seed=recipe.seed, log=log)
            work.save(language, stage.name, "smaller", {f"{stage.name}: layers": layers})
        work.remember(f"{stage.name}: before", partial(measured, language.model, f"{stage.name}, smaller"))
        config = recipe.training_of(stage)
        asked = config.distillation != 0.0 or bool(config.hidden or config.attention)
        log(f"stage {stage.name}: {config.steps} steps")
        result = finetune(
            language.model,
            pieces,
            config=config,
            teacher=teacher if asked else None,
            checkpoint=work.folder / f"{stage.name}.state",
            teacher_cache=teacher_cache if asked else None,
            label=stage.name,
        )
        work.remember(f"{stage.name}: training", partial(_training, result))
        work.remember(f"{stage.name}: after", partial(measured, language.model, f"{stage.name}, learnt"))
        work.save(language, stage.name, "learnt")
    save_language_model(language, out)
    outcome = Distilled(
        language,
        (_parameters(dense.model), _parameters(language.model)),
        work.recall("dense"),
        tuple(
            {"name": stage.name, **{part: work.recall(f"{stage.name}: {part}") for part in _PARTS}}
            for stage in recipe.stages
        ),
        provenance(threads=torch.get_num_threads()),
    )
    work.remove()
    return outcome


class _Work:
    """What is needed to go on after an interruption: the model where it last stood, and what was found out."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = require_writable(folder)
        self._file = folder / _FOUND
        about = recipe.model_dump(mode="json", exclude_none=True)
        self._found: dict[str, Any] = {"recipe": about, "found": {}, "at": None}
        if self._file.exists():
            try:
                self._found = json.loads(self._file.read_text())
                if self._found["recipe"] != about:
                    raise CheckpointError(f"{folder} is the work of another recipe; remove it, or name another folder")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self._file} is damaged: {error}; remove {folder}") from error

    def remember(self, key: str, find: Callable[[], Any]) -> None:
        """Find something out, unless it is known."""
        if key not in self._found["found"]:
            self._found["found"][key] = find()
            self._write()

    def recall(self, key: str) -> Any:
        """What was found out."""
        return self._found["found"][key]

    def save(self, language: LanguageModel, stage: str, state: str, found: Mapping[str, Any] | None = None) -> None:
        """Keep the model and what was found out of it at once; forget the one before, and how that one was learning."""
        before, name = self._found["at"], f"{stage}.{state}"
        save_language_model(language, self.folder / name)
        self._found["at"] = name
        self._found["found"].update(found or {})
        self._found.setdefault("reached", []).append(name)
        self._write()
        if before is not None:
            shutil.rmtree(self.folder / before)
        if state == "learnt":
            (self.folder / f"{stage}.state").unlink(missing_ok=True)

    def has(self, stage: str, state: str) -> bool:
        """Whether a stage has come so far."""
        return f"{stage}.{state}" in self._found.get("reached", [])

    def latest(self) -> Path | None:
        """The folder of the model where it last stood; None at the beginning."""
        return None if self._found["at"] is None else self.folder / self._found["at"]

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self.folder)

    def _write(self) -> None:
        write_bytes(self._file, (json.dumps(self._found) + "\n").encode())


def make_smaller(
    stage: Stage,
    model: nn.Module,
    *,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    log: Log = lambda _: None,
) -> list[dict[str, Any]]:
    """Make the layers of a stage smaller, in place, without any training.

    Args:
        stage: of a recipe.
        model: is changed.
        calibration: see :func:`mpochain.compress`.
        seed: of what is drawn.
        log: told what is done.

    Returns:
        What became of each layer, ready for JSON.
    """
    records = []
    for group in stage.groups:
        report = compress(
            model,
            group.budget,
            calibration=calibration,
            targets=group.targets,
            method=_method(group),
            seed=seed,
            log=log,
        )
        records += report.as_dict()["layers"]
    return records


def _method(group: Group) -> str | Kronecker:
    if group.factors is None:
        assert group.method is not None
        return group.method
    return Kronecker(
        permuted=group.permuted,
        calibrated=group.calibrated,
        factors=group.factors,
        terms=group.terms,
        seconds=group.seconds,
    )


def _training(result: TrainResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "losses": [round(loss, 5) for loss in result.losses],
    }


def _check(recipe: Recipe, model: nn.Module) -> None:
    """Refuse what would fail in a later stage, before the first."""
    taken: dict[str, str] = {}
    for stage in recipe.stages:
        for group in stage.groups:
            method = _method(group)
            way = METHODS.get(method) if isinstance(method, str) else method
            if way is None:
                raise RecipeError(f"stage {stage.name}: there is no method {method!r}; there are {', '.join(METHODS)}")
            if way.needs != "nothing" and recipe.calibration is None:
                raise RecipeError(f"stage {stage.name} needs calibration data; give the section calibration")
            try:
                layers = select(model, group.targets, embeddings=way.embeddings)
                for name, layer in layers.items():
                    if isinstance(way, Kronecker):
                        out, in_ = weight_and_bias(layer, name)[0].shape
                        way.require_fit((int(out), int(in_)))
            except MPOError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from error
            if not layers:
                raise RecipeError(
                    f"stage {stage.name}: {', '.join(group.targets)} name no layer that can be made smaller"
                )
            for name in layers:
                if name in taken:
                    raise RecipeError(f"{name} is made smaller in the stages {taken[name]} and {stage.name}")
                taken[name] = stage.name


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
