"""Healing: a compressed language model learns again what compression took from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import context_length
from mpochain.errors import ShapeError, SpecError
from mpochain.surgery import learning_rate_scales
from mpochain.train.attention import attention_loss
from mpochain.train.config import FinetuneConfig
from mpochain.train.distillation import distillation_loss, hidden_loss
from mpochain.train.loop import TrainResult, train
from mpochain.train.preparation import prepared
from mpochain.train.teacher import Teacher, TeacherCache, autocast, fingerprint, said_by
from mpochain.train.trainable import require_trainable
from mpochain.train.windows import Windows

__all__ = ["finetune", "rehearse"]


def finetune(
    model: nn.Module,
    batches: Tensor | Mapping[str, Any] | Sequence[Any],
    *,
    config: FinetuneConfig | None = None,
    teacher: nn.Module | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | str | None = None,
    teacher_cache: Path | str | None = None,
    label: str = "finetune",
) -> TrainResult:
    """Train a compressed language model in place, toward its text, its dense teacher, or both.

    Every position predicts the token after it, so labels are the tokens shifted by one: they need not be given, and
    given ones (``labels``, with the positions of ``input_ids``) are shifted too, as models of transformers do. Labels
    of -100 and padding (``attention_mask`` 0, where no labels are given) count for no loss. Each epoch goes through all
    windows once, in an order drawn from ``config.seed``. Dropout is on while training.

    Modes, ``requires_grad``, ``use_cache`` and gradient checkpointing of both models are afterwards as before.

    Args:
        model: any module from tokens ``(n, length)`` to logits ``(n, length, V)``, or to an output with ``.logits``;
            its trainable parameters are float32 or float64. Trained on the device it is on.
        batches: windows of equal length: integers ``(n, length)``; or a list of such, or of single windows
            ``(length,)``; or mappings of named arguments, ``input_ids`` among them, or a list of these.
        config: see :class:`mpochain.train.FinetuneConfig`.
        teacher: the dense original, a copy made before ``model`` was compressed, on the same device. Its parameters do
            not change.
        evaluate: called with the model in evaluation mode, every ``config.evaluate_every`` steps and at the end; its
            numbers are in the result's curve.
        checkpoint: file to keep the state of the run in; if it exists the run goes on from there, to the bit.
        teacher_cache: folder to keep the teacher's logits in, so that it is asked once of each window, in this run and
            in others with the same teacher and batches; two bytes for each word of the vocabulary at each position.
            Not with ``hidden`` or ``attention``, for which it must run all the same.
        label: shown with the progress.

    Returns:
        Losses, evaluations, tokens and seconds.

    Raises:
        SpecError: no batches, tokens outside of the vocabulary, a batch larger than the data, nothing to train, a
            teacher that is the model itself, or one that is asked for and missing or given and not used.
        ShapeError: windows of different lengths or too long for the model, or a teacher of another vocabulary.
        DTypeError: tokens that are no integers, or parameters too narrow to be trained.
        NonFiniteError: a loss that is NaN or infinite, naming the step, before it is taken.
        CheckpointError: the checkpoint is damaged, or of another model, teacher, configuration or data.
        OutputError: its folder cannot be written.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> model = nn.Sequential(nn.Embedding(11, 8), MPOLinear(8, 11, max_bond=2))
        >>> windows = torch.arange(44).view(4, 11) % 11
        >>> config = FinetuneConfig(steps=30, batch_size=2, learning_rate=0.1)
        >>> result = finetune(model, windows, config=config)
        >>> result.tokens, result.losses[-1] < result.losses[0]
        (600, True)
    """
    config = config or FinetuneConfig()
    weight = config.distillation if config.distillation is not None else float(teacher is not None)
    config = config.model_copy(update={"distillation": weight})
    _check_models(model, teacher, config)
    if teacher_cache is not None:
        _check_cache(teacher is not None, config)
    windows = _windows(batches, config)
    device = next(model.parameters()).device

    asked = Teacher(teacher, config)

    def loss(model: nn.Module, part: Windows) -> Tensor:
        with autocast(device, config):
            theirs, ours = asked.says(part), said_by(model, part, config)
        assert ours.logits is not None
        value = ours.logits.new_zeros(())
        if config.outputs:
            value = config.outputs * distillation_loss(
                ours.logits, part.labels, theirs.logits, weight=weight, temperature=config.temperature
            )
        if theirs.hidden:
            errors = [hidden_loss(ours.hidden[name], aim, part.labels) for name, aim in theirs.hidden.items()]
            value = value + config.hidden * torch.stack(errors).mean()
        if theirs.attentions:
            value = value + config.attention * attention_loss(ours.attentions, theirs.attentions, part.labels)
        return value

    def evaluation() -> dict[str, float]:
        model.eval()
        return evaluate() if evaluate is not None else {}

    identity: dict[str, Any] = {}
    if checkpoint is not None:
        identity = {"data": windows.sha256(), "teacher": fingerprint(teacher) if teacher is not None else None}
    with prepared(model, teacher, config):
        vocabulary = _try(model, teacher, windows, config, device)
        if teacher_cache is not None:
            assert teacher is not None
            about = {"teacher": fingerprint(teacher), "autocast": config.autocast}
            identity["teacher_cache"] = True  # rounds what the teacher says
            asked = Teacher(teacher, config, TeacherCache(Path(teacher_cache), windows, vocabulary, about))
        return train(
            model,
            lambda _generator, step: windows.batch(step, config.batch_size, config.seed).to(device),
            loss,
            config,
            parts=lambda batch: batch.split(config.accumulate),
            tokens=lambda batch: batch.targets,
            scales=learning_rate_scales(model) if config.core_rates else None,
            evaluate=evaluation,
            checkpoint=Path(checkpoint) if checkpoint is not None else None,
            identity=identity,
            label=label,
        )


def rehearse(model: nn.Module, batches: Any, *, config: FinetuneConfig, cached: bool = False) -> None:
    """Find out what :func:`finetune` would refuse, without training: hours of other work may lie before it.

    Args:
        model: what the model that is to be trained is made of, with the modules it will have; is not changed.
        batches: see :func:`finetune`.
        config: see :func:`finetune`. What is compressed is not known yet.
        cached: whether the teacher's logits are to be kept.

    Raises:
        SpecError: see :func:`finetune`.
        ShapeError: see :func:`finetune`.
        DTypeError: see :func:`finetune`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
        >>> rehearse(model, torch.arange(44).view(4, 11) % 11, config=FinetuneConfig(batch_size=4))
    """
    if config.trainable == "compressed":
        config = config.model_copy(update={"trainable": "all"})
    if cached:
        _check_cache(config.asks_teacher, config)
    require_trainable(model, config)
    windows = _windows(batches, config)
    with prepared(model, model, config):
        _try(model, model, windows, config, next(model.parameters()).device)


def _windows(batches: Any, config: FinetuneConfig) -> Windows:
    windows = Windows.of(batches)
    if config.batch_size > len(windows):
        raise SpecError(f"batch_size={config.batch_size} is over the {len(windows)} windows; give more, or lower it")
    return windows


def _check_cache(asked: bool, config: FinetuneConfig) -> None:
    if not asked or config.hidden or config.attention:
        why = "hidden or attention ask the teacher at every step" if asked else "there is no teacher"
        raise SpecError(f"teacher_cache= keeps the teacher's logits, but {why}; leave it out")


def _check_models(model: nn.Module, teacher: nn.Module | None, config: FinetuneConfig) -> None:
    trainable = require_trainable(model, config)
    if config.asks_teacher and teacher is None:
        raise SpecError(
            f"distillation={config.distillation}, hidden={config.hidden} and attention={config.attention} need a "
            "teacher="
        )
    if teacher is None:
        return
    if not config.asks_teacher:
        raise SpecError(
            "a teacher is given, but distillation, hidden and attention are 0, so it would not be used; leave it out"
        )
    theirs = {id(each) for each in teacher.parameters()}
    shared = [name for name, each in trainable.items() if id(each) in theirs]
    if shared:
        raise SpecError(
            f"the teacher shares {shared[0]} with the model, and would change with it; copy.deepcopy the model before "
            "it is compressed"
        )


def _try(
    model: nn.Module, teacher: nn.Module | None, windows: Windows, config: FinetuneConfig, device: torch.device
) -> int:
    """Find out with one window what would fail in the middle of the first step, or after it; the vocabulary."""
    for each in (model, teacher):
        limit = None if each is None else context_length(each)
        if limit is not None and windows.length > limit:
            raise ShapeError(f"windows of {windows.length} tokens are over the {limit} of {type(each).__name__}")
    first = windows.select(torch.tensor([0])).to(device)
    # Of token 0, which every vocabulary has: how large it is the logits tell.
    first.inputs["input_ids"] = torch.zeros_like(first.inputs["input_ids"])
    model.eval()
    with torch.no_grad(), autocast(device, config):
        ours, theirs = said_by(model, first, config), Teacher(teacher, config).says(first)
    assert ours.logits is not None
    if ours.logits.shape[:-1] != first.labels.shape:
        raise ShapeError(
            f"{type(model).__name__} answers {tuple(first.labels.shape)} tokens with logits "
            f"{tuple(ours.logits.shape)}; healing needs logits at every position"
        )
    if theirs.logits is not None and theirs.logits.shape != ours.logits.shape:
        raise ShapeError(
            f"the teacher's vocabulary of {theirs.logits.shape[-1]} is not the model's of {ours.logits.shape[-1]}; the "
            "teacher is the model as it was before compression"
        )
    for name, aim in theirs.hidden.items():
        hidden_loss(ours.hidden[name], aim, first.labels)
    if theirs.attentions:
        attention_loss(ours.attentions, theirs.attentions, first.labels)
    vocabulary = int(ours.logits.shape[-1])
    windows.require_vocabulary(vocabulary)
    return vocabulary
