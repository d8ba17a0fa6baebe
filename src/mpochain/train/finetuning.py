"""Finetuning of a compressed model, with distillation from its dense original."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.distributed import ALONE, reshard, team_of_group, trains_together
from mpochain.errors import ArgumentError, MPOError, ShapeError
from mpochain.surgery import learning_rate_scales
from mpochain.surgery.causality import require_causal
from mpochain.surgery.finding import require_module
from mpochain.surgery.fingerprint import fingerprint
from mpochain.surgery.half_precision import in_float32
from mpochain.surgery.wrappers import unwrapped
from mpochain.train.config import FinetuneConfig
from mpochain.train.data import TrainingData
from mpochain.train.examples import Examples, predicts_next_tokens
from mpochain.train.fitting import require_context, require_fitting_models
from mpochain.train.loop import train
from mpochain.train.objective import finetuning_loss
from mpochain.train.precision import with_products_of
from mpochain.train.prediction_loss import require_equal_predictions, require_labels
from mpochain.train.preparation import prepared
from mpochain.train.record import TrainResult
from mpochain.train.sharing import require_alike, with_mean_gradients
from mpochain.train.teacher import Teacher, TeacherCache, autocast, called, outputs_of
from mpochain.train.trainable import require_trainable
from mpochain.train.windows import Windows

__all__ = ["finetune", "rehearse"]


@torch.inference_mode(False)
@torch.enable_grad()
def finetune(
    model: nn.Module,
    batches: Tensor | Mapping[str, Any] | Sequence[Any],
    *,
    config: FinetuneConfig | None = None,
    teacher: nn.Module | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | str | None = None,
    teacher_cache: Path | str | None = None,
    share: bool = False,
    label: str = "finetune",
) -> TrainResult:
    """Finetune a compressed model in place, on data, on the predictions of its dense teacher, or both.

    A language model predicts the next token: the targets are the tokens shifted by one. Optional ``labels``, aligned
    with ``input_ids``, are shifted too, as in transformers models. Positions with the label -100 do not count, nor does
    padding (``attention_mask`` 0, or a large negative number in a mask that is added to the scores). Each epoch uses
    every window once, in an order drawn from ``config.seed``. Dropout is active during training.

    Other models of transformers (encoder-decoders, masked language models, classifiers, images, speech) learn by the
    loss that they compute of ``labels``, and from a teacher by the divergence of their classes or the relative squared
    error of other predictions, so that a teacher alone needs no labels. Padding does not count.

    Several processes can train a model that is sharded (``fully_shard``) or within ``DistributedDataParallel``: each
    calls this with batches of its own, of which every step takes ``batch_size`` in each process. Losses are those of
    the process, and the first process writes the checkpoint. With ``share=True`` all of them give the same model and
    batches, and the result is that of one process.

    Training modes, ``requires_grad``, ``use_cache`` and gradient checkpointing of both models are restored afterwards.

    Args:
        model: any module from tokens ``(n, length)`` to logits ``(n, length, V)``, or to an output with ``.logits``; or
            any model of transformers. Trained on its present device. A model in bfloat16 or float16 is held as float32
            during the run and rounded to its type afterwards; products of a bfloat16 model are then bfloat16.
        batches: windows of equal length: integers ``(n, length)``; a list of such tensors or of single windows
            ``(length,)``; a mapping of keyword arguments that include ``input_ids``; or a list of such mappings. For a
            model that does not predict the next token, tensors of its main input or mappings of its arguments, such as
            ``pixel_values`` and ``labels``; the first axis of each counts the examples.
        config: see :class:`mpochain.train.FinetuneConfig`.
        teacher: the dense original, copied before ``model`` was compressed, on the same device. Its parameters do not
            change.
        evaluate: called every ``config.evaluate_every`` steps and after the last, with the model in evaluation mode;
            its metrics are stored in ``curve`` of the result.
        checkpoint: file with the state of the run; if it exists, the run resumes from it, bit for bit.
        teacher_cache: folder for the teacher's logits, so that the teacher runs once per window, in this run and in
            others with the same teacher and batches; takes two bytes per position and vocabulary entry. Excludes
            ``hidden`` and ``attention``, which need the teacher at every step.
        share: whether the processes of the default group share every batch: all call this with the same model, batches
            and configuration, ``batch_size`` counts the windows of all of them, and losses and the checkpoint are those
            of one process, so that any number of processes can go on from it. A model that is not sharded is trained
            within ``DistributedDataParallel``. No effect without a process group.
        label: name of the run in progress messages.

    Returns:
        Losses, evaluations, tokens and seconds.

    Raises:
        ArgumentError: there are no batches or nothing to train, a token is outside the vocabulary, a batch is larger
            than the data, the teacher shares parameters with the model, a loss needs a teacher and none is given, or
            no loss uses the teacher.
        ShapeError: windows differ in length or are too long for the model, or the teacher has another vocabulary.
        DTypeError: tokens are not integers, or parameters are neither float32, float64, bfloat16 nor float16.
        NonFiniteError: a loss or gradient is NaN or infinite; the message names the step, which is not taken.
        CheckpointError: the checkpoint is damaged, or belongs to another model, other weights at the start, another
            teacher, configuration or data.
        OutputError: a folder is not writable, or another run uses the checkpoint.
        KeyboardInterrupt: Ctrl-C, see :func:`mpochain.train.train`. On the command line, after the current step, with
            the checkpoint written; otherwise at once, and the model may be partly updated.

    Example:
        >>> from mpochain.nn import MPOLinear
        >>> model = nn.Sequential(nn.Embedding(11, 8), MPOLinear(8, 11, max_bond=2))
        >>> windows = torch.arange(44).view(4, 11) % 11
        >>> config = FinetuneConfig(steps=30, batch_size=2, learning_rate=0.1)
        >>> result = finetune(model, windows, config=config)
        >>> result.tokens, result.losses[-1] < result.losses[0]
        (600, True)
    """
    require_module(model)
    if teacher is not None:
        require_module(teacher, "teacher")
    if config is not None and not isinstance(config, FinetuneConfig):
        raise ArgumentError(f"config must be a mpochain.FinetuneConfig, got {type(config).__name__}")
    config = config or FinetuneConfig()
    reshard(model)  # before parameters are frozen
    weight = config.distillation if config.distillation is not None else float(teacher is not None)
    config = config.model_copy(update={"distillation": weight})
    require_fitting_models(model, teacher, config)
    config = with_products_of(model, config)
    if teacher_cache is not None:
        _check_cache(teacher is not None, config)
    data = _data(batches, model, config)
    team = team_of_group() if share else ALONE
    require_alike(team, model, teacher, data, config)
    device = next(model.parameters()).device

    source = Teacher(teacher, config)

    def loss(model: nn.Module, part: TrainingData) -> Tensor:
        with autocast(device, config):
            target, outputs = source.outputs(part), called(model, part, config, unwrapped(model))[1]
        return finetuning_loss(outputs, target, part, config)

    def evaluation() -> dict[str, float]:
        model.eval()
        return evaluate() if evaluate is not None else {}

    identity: dict[str, Any] = {}
    if checkpoint is not None:
        hashes = team_of_group(together=team.is_alone and trains_together(model)).gathered(data.sha256())
        identity = {"data": hashes if len(hashes) > 1 else hashes[0]}
        identity["teacher"] = fingerprint(teacher) if teacher is not None else None
    with in_float32(model), prepared(model, teacher, config):
        vocabulary = _check_forward(model, teacher, data, config, device)
        if teacher_cache is not None:
            assert teacher is not None
            if not isinstance(data, Windows):
                raise ArgumentError(
                    "teacher_cache= stores logits of tokens, which this model has none of; leave it out"
                )
            source_identity = {"teacher": fingerprint(teacher), "autocast": config.autocast}
            identity["teacher_cache"] = True  # the cache rounds logits to float16
            cache = TeacherCache(Path(teacher_cache), data, vocabulary, source_identity)
            source = Teacher(teacher, config, cache)
        trained = model
        if not (team.is_alone or trains_together(model)):
            trained = with_mean_gradients(model)
        return train(
            trained,
            lambda _generator, step: data.batch(step, config.batch_size, config.seed).to(device),
            loss,
            config,
            parts=lambda batch: (
                batch.split(config.accumulate) if team.is_alone else batch.shared(team, config.accumulate)
            ),
            tokens=lambda batch: batch.targets,
            scales=learning_rate_scales(unwrapped(model)) if config.core_rates else None,
            evaluate=evaluation,
            checkpoint=Path(checkpoint) if checkpoint is not None else None,
            identity=identity,
            shared=not team.is_alone,
            label=label,
        )


def rehearse(model: nn.Module, batches: Any, *, config: FinetuneConfig, cached: bool = False) -> None:
    """Check the arguments of :func:`finetune` without training, before hours of other work.

    Args:
        model: the dense model that is to be compressed; it does not change.
        batches: see :func:`finetune`.
        config: see :func:`finetune`. With ``trainable="compressed"`` or ``"auxiliary"`` all parameters are
            checked, because the compressed layers are not known yet.
        cached: whether the teacher's logits will be cached.

    Raises:
        ArgumentError: see :func:`finetune`.
        ShapeError: see :func:`finetune`.
        DTypeError: see :func:`finetune`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
        >>> rehearse(model, torch.arange(44).view(4, 11) % 11, config=FinetuneConfig(batch_size=4))
    """
    if config.trainable in ("compressed", "auxiliary"):
        config = config.model_copy(update={"trainable": "all"})
    if cached:
        _check_cache(config.asks_teacher, config)
    require_trainable(model, config)
    data = _data(batches, model, config)
    with prepared(model, model, config):
        _check_forward(model, model, data, config, next(model.parameters()).device)


def _data(batches: Any, model: nn.Module, config: FinetuneConfig) -> TrainingData:
    data: TrainingData = Windows.of(batches) if predicts_next_tokens(model) else Examples.of(batches, model)
    kind = "windows" if isinstance(data, Windows) else "examples"
    if config.batch_size > len(data):
        raise ArgumentError(
            f"batch_size={config.batch_size} exceeds the {len(data)} {kind}; give more {kind}, or a smaller batch"
        )
    if config.accumulate > 1 and "return_loss" in inspect.signature(model.forward).parameters:
        raise ArgumentError(
            f"accumulate={config.accumulate} would split batches whose examples {type(model).__name__} contrasts with "
            "one another; use accumulate=1"
        )
    return data


def _check_cache(has_teacher: bool, config: FinetuneConfig) -> None:
    if not has_teacher or config.hidden or config.attention:
        reason = "hidden or attention need the teacher at every step" if has_teacher else "there is no teacher"
        raise ArgumentError(f"teacher_cache= stores the teacher's logits, but {reason}; leave it out")


def _check_forward(
    model: nn.Module, teacher: nn.Module | None, data: TrainingData, config: FinetuneConfig, device: torch.device
) -> int:
    """Run both models on one window or example, so that incompatible data or models fail before the first step.

    Returns:
        The vocabulary size; 0 for a model that does not predict the next token.
    """
    require_context(data, model, teacher)
    first = data.select(torch.tensor([0], device="cpu")).to(device)
    if isinstance(first, Windows):
        # Token 0 is in every vocabulary; the vocabulary size is read from the logits.
        first.inputs["input_ids"] = torch.zeros_like(first.inputs["input_ids"])
    model.eval()
    with torch.no_grad(), autocast(device, config):
        try:
            outputs, target = outputs_of(model, first, config), Teacher(teacher, config).outputs(first)
        except MPOError:
            raise
        except (TypeError, ValueError) as error:
            arguments = [*data.inputs, *(["labels"] if data.labels is not None else [])]
            raise ArgumentError(
                f"{type(model).__name__} cannot be called with {', '.join(arguments)}: {error}; give the arguments "
                "that its forward expects"
            ) from error
    name = type(model).__name__
    if isinstance(data, Examples):
        if teacher is not None:
            require_equal_predictions(outputs.predictions, target.predictions)
        if config.outputs and config.distillation != 1.0:
            require_labels(name, outputs.loss, data, outputs.predictions)
        finetuning_loss(outputs, target, first, config)
        return 0
    assert isinstance(data, Windows)
    assert outputs.logits is not None
    if outputs.logits.shape[:-1] != (1, data.length):
        raise ShapeError(
            f"{name} computes logits {tuple(outputs.logits.shape)} for {(1, data.length)} tokens; finetune needs "
            "logits at every position"
        )
    if target.logits is not None and target.logits.shape != outputs.logits.shape:
        raise ShapeError(
            f"the teacher has a vocabulary of {target.logits.shape[-1]} and the model one of "
            f"{outputs.logits.shape[-1]}; use the uncompressed model as the teacher"
        )
    vocabulary = int(outputs.logits.shape[-1])
    data.require_vocabulary(vocabulary)
    finetuning_loss(outputs, target, first, config)
    if hasattr(model, "main_input_name") and data.inputs.keys() <= {"input_ids", "attention_mask"}:
        with autocast(device, config):
            require_causal(model, data.inputs["input_ids"][0].to(device))
    return vocabulary
