"""Trainer of transformers that trains compressed models by the losses and learning rates of ``mpochain.finetune``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mpochain.errors import ArgumentError
from mpochain.execution import fast_products
from mpochain.integrations.transformers.healing_options import require_config, require_options
from mpochain.surgery import learning_rate_scales
from mpochain.surgery.calls import logits_of
from mpochain.surgery.causality import require_causal
from mpochain.surgery.finding import require_module
from mpochain.surgery.half_precision import in_float32, in_own_types
from mpochain.train import FinetuneConfig
from mpochain.train.data import TrainingData
from mpochain.train.examples import Examples, predicts_next_tokens
from mpochain.train.fitting import require_context, require_fitting_models
from mpochain.train.groups import scaled_groups
from mpochain.train.objective import finetuning_loss
from mpochain.train.precision import with_products_of
from mpochain.train.prediction_loss import require_equal_predictions
from mpochain.train.preparation import prepared
from mpochain.train.teacher import Outputs, Teacher, autocast, called
from mpochain.train.windows import Windows

__all__ = ["HealingTrainer"]


class HealingTrainer(transformers.Trainer):
    """Trainer of transformers with the loss of :func:`mpochain.finetune`, for the same model, teacher and batch.

    Batches, schedule, accumulation, evaluation, logging, checkpoints and their resumption are those of
    ``transformers.Trainer`` and set by ``TrainingArguments``. The losses, the trained parameters and the factors of
    their learning rates are set by a :class:`mpochain.train.FinetuneConfig`. A language model needs no labels: its
    targets are the tokens shifted by one, and padding does not count. With accumulation and with several processes
    every label has the same weight. ``eval_loss`` is the same loss.

    ``weight_decay`` of the arguments applies to every parameter, norms and biases included, divided by the factor of
    its learning rate as in :func:`mpochain.train.parameter_groups`. A model in bfloat16 or float16 is held, and written
    to checkpoints, as float32 during ``train()``, and rounded to its type afterwards. Scales of codes
    are float16 in checkpoints, too, so that a resumed training of them differs in the last digits.

    Args:
        model: the compressed model.
        args: ``transformers.TrainingArguments``; None for its defaults.
        teacher: the dense original, copied before ``model`` was compressed. It is moved to the device of the model,
            never changed and never saved.
        config: losses, ``core_rates``, ``trainable`` and ``autocast``. What ``TrainingArguments`` sets (steps, batches,
            rates, seeds) must not be given here.
        options: further arguments of ``transformers.Trainer``, such as ``train_dataset``, ``eval_dataset``,
            ``data_collator``, ``callbacks`` and ``optimizers``.

    Raises:
        ArgumentError: an option of Trainer that would change the loss, a setting that belongs into the arguments, or a
            model, teacher and config that do not fit, see :func:`mpochain.finetune`. While training: the model does not
            give what the losses compare.
        ShapeError: while training: the teacher has another vocabulary, or windows are too long.

    Example:
        >>> import copy, tempfile, mpochain as mpo
        >>> sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 16, "bos_token_id": 0}
        >>> dense = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, eos_token_id=0))
        >>> model = copy.deepcopy(dense)
        >>> report = mpo.compress(model, 0.7, method="svd")
        >>> texts = [{"input_ids": torch.arange(8) + k} for k in range(8)]
        >>> settings = {"max_steps": 1, "report_to": [], "disable_tqdm": True, "use_cpu": True}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = transformers.TrainingArguments(folder, **settings)
        ...     trainer = HealingTrainer(model, args, teacher=dense, train_dataset=texts)
        ...     trainer.train().global_step
        {'train_runtime': ...}
        1
    """

    # compute_loss weighs each batch by its share of the labels of the step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        *,
        teacher: nn.Module | None = None,
        config: FinetuneConfig | None = None,
        **options: Any,
    ) -> None:
        require_module(model)
        assert model is not None
        if teacher is not None:
            require_module(teacher, "teacher")
        config = require_config(config)
        weight = config.distillation if config.distillation is not None else float(teacher is not None)
        config = config.model_copy(update={"distillation": weight})
        require_fitting_models(model, teacher, config)
        require_options(args, config, options)
        super().__init__(model, args, **options)
        self.teacher, self.config = teacher, with_products_of(model, config)
        self.model_accepts_loss_kwargs = True  # earlier versions of transformers ask this for loss_is_scaled_for_ga
        self._checked = False
        if teacher is not None and self.place_model_on_device and not hasattr(teacher, "hf_device_map"):
            teacher.to(self.args.device)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train, see ``transformers.Trainer.train``; modes and ``requires_grad`` of both models are restored."""
        with torch.inference_mode(False), torch.enable_grad(), in_float32(self._whole()), self._prepared():
            return super().train(*arguments, **named)

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """Evaluate or predict, see ``transformers.Trainer.evaluation_loop``."""
        with self._prepared():
            return super().evaluation_loop(*arguments, **named)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, see ``transformers.Trainer.save_model``; the teacher is not part of it."""
        with in_own_types(self._whole()):
            super().save_model(output_dir, _internal_call)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimiser that the arguments name, with one group of parameters per learning rate.

        Raises:
            ArgumentError: ``core_rates`` with an optimiser that chooses its own rates.
        """
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, trained)
            if {"params", "model", "optimizer_dict"} & options.keys() or options.get("lr") is None:
                if self.config.core_rates or self.config.trainable != "all":
                    raise ArgumentError(
                        f"optim={self.args.optim} groups the parameters itself, which excludes core_rates and "
                        "trainable; leave them out, or choose another optimiser, such as adamw_torch"
                    )
            else:
                scales = learning_rate_scales(trained) if self.config.core_rates else {}
                with self._prepared():
                    groups = scaled_groups(trained, scales, self.args.weight_decay)
                for group in groups:
                    group["lr"] = options["lr"] * group["scale"]
                self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Collect the batches of a step, see ``transformers.Trainer``, and count what they have to predict."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        targets: int = sum(self._data(batch).targets for batch in batches)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            targets = int(self.accelerator.gather(torch.tensor(targets, device=device)).sum())
        return batches, targets

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss that ``config`` describes.

        Args:
            model: the model, or the wrapper that Trainer put around it.
            inputs: a batch.
            return_outputs: whether to return the outputs, too.
            num_items_in_batch: labels of all batches of the step; None for the mean over this batch. It has no meaning
                in evaluation.

        Raises:
            ArgumentError: the model does not give what the losses compare, or is no causal language model.
            ShapeError: the teacher has another vocabulary, or windows are too long.

        Returns:
            The loss, or the loss and the outputs by name.
        """
        inner, data = self._inner(), self._data(inputs)
        self._check(inner, data)
        with self._autocast(data), fast_products():
            target = Teacher(self.teacher, self.config).outputs(data)
            raw, outputs = called(model, data, self.config, inner)
            loss = self._loss(model, outputs, target, data)
        if model.training and num_items_in_batch is not None:
            processes = self.args.world_size if self.args.average_tokens_across_devices else 1
            loss = loss * (data.targets / max(int(num_items_in_batch), 1) * processes)
        if not return_outputs:
            return loss
        values = raw if isinstance(raw, Mapping) else {"logits": logits_of(raw)}
        return loss, {name: value for name, value in values.items() if name not in ("loss", "attentions")}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate one batch, see ``transformers.Trainer.prediction_step``; the loss needs no labels."""
        if "labels" not in inputs and self._is_causal():
            inputs = {**inputs, "labels": inputs["input_ids"]}  # padding does not count all the same
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is None and self.config.distillation == 1.0:
            with torch.no_grad():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss, logits, labels

    def _loss(self, model: nn.Module, outputs: Outputs, target: Outputs, data: TrainingData) -> Tensor:
        if isinstance(data, Windows) and not data.targets:
            assert outputs.logits is not None
            # A mean of nothing, with the gradients that other processes wait for.
            return outputs.logits.sum() * 0.0 if model.training else outputs.logits.new_tensor(float("nan"))
        if isinstance(data, Examples) and self.teacher is not None:
            require_equal_predictions(outputs.predictions, target.predictions)
        return finetuning_loss(outputs, target, data, self.config)

    def _data(self, inputs: Mapping[str, Any]) -> TrainingData:
        values = {name: value for name, value in inputs.items() if value is not None}
        return Windows.of(values, empty=True) if self._is_causal() else Examples.of(values, self._inner())

    def _whole(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _inner(self) -> nn.Module:
        """The model without wrappers and adapters, in which modules have the names that the teacher's have."""
        inner: Any = self.accelerator.unwrap_model(self.model)
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def _is_causal(self) -> bool:
        return predicts_next_tokens(self._inner())

    def _autocast(self, data: TrainingData) -> Any:
        if self.config.autocast is None:  # the arguments bf16 and fp16, for the teacher, too
            return self.accelerator.autocast()
        return autocast(next(iter(data.inputs.values())).device, self.config)

    def _check(self, inner: nn.Module, data: TrainingData) -> None:
        """Refuse windows that are too long, and once a model whose predictions depend on later tokens."""
        require_context(data, inner, self.teacher)
        if self._checked or self.args.world_size > 1:
            return
        self._checked = True
        if isinstance(data, Windows) and data.inputs.keys() <= {"input_ids", "attention_mask"}:
            modes = {module: module.training for module in inner.modules()}
            with torch.no_grad(), self._autocast(data):
                try:
                    require_causal(inner.eval(), data.inputs["input_ids"][0])
                finally:
                    for module, mode in modes.items():
                        module.training = mode

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        with prepared(self._whole(), self.teacher, self.config):
            yield
