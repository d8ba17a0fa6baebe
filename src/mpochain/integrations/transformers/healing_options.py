"""Options of Trainer and of the losses that contradict one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpochain.errors import ArgumentError
from mpochain.train import FinetuneConfig

__all__ = ["require_config", "require_options"]

# What TrainingArguments sets, by the field of FinetuneConfig.
_OF_ARGUMENTS = {
    "steps": "max_steps or num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "betas": "adam_beta1 and adam_beta2",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "clip_norm": "max_grad_norm",
    "seed": "seed",
    "evaluate_every": "eval_strategy and eval_steps",
    "checkpoint_every": "save_strategy and save_steps",
    "accumulate": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
}


def require_config(config: FinetuneConfig | None) -> FinetuneConfig:
    """Return a configuration that sets nothing of what the arguments of Trainer set.

    Raises:
        ArgumentError: it does, or it is something else.

    Example:
        >>> require_config(FinetuneConfig(distillation=0.5)).distillation
        0.5
        >>> require_config(FinetuneConfig(steps=10))
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: config: steps is max_steps or num_train_epochs of TrainingArguments; ...
    """
    if config is not None and not isinstance(config, FinetuneConfig):
        raise ArgumentError(f"config must be a mpochain.FinetuneConfig, got {type(config).__name__}")
    config = config or FinetuneConfig()
    twice = [name for name in _OF_ARGUMENTS if name in config.model_fields_set]
    if twice:
        named = ", ".join(f"{name} is {_OF_ARGUMENTS[name]}" for name in twice)
        raise ArgumentError(f"config: {named} of TrainingArguments; set it there, and leave it out of config=")
    return config


def require_options(args: Any, config: FinetuneConfig, options: Mapping[str, Any]) -> None:
    """Refuse options of Trainer that would replace the loss or the rates, or that the loss cannot be computed with.

    Args:
        args: ``TrainingArguments``, or None.
        config: the losses.
        options: arguments of ``transformers.Trainer``.

    Raises:
        ArgumentError: there are such options; the message lists all.

    Example:
        >>> require_options(None, FinetuneConfig(), {"compute_loss_func": max})
        Traceback (most recent call last):
        ...
        mpochain.errors.ArgumentError: compute_loss_func= would replace the loss; use transformers.Trainer for it
    """
    wrong = []
    if options.get("compute_loss_func") is not None:
        wrong.append("compute_loss_func= would replace the loss; use transformers.Trainer for it")
    if options.get("model_init") is not None:
        wrong.append("model_init= would replace the model that the losses were checked with; give model=")
    if config.core_rates and (options.get("optimizers") or (None,))[0] is not None:
        wrong.append(
            "core_rates=True sets the rates of an optimiser that Trainer creates, but optimizers= gives one; create it "
            "from mpochain.train.parameter_groups(model, rate), and leave core_rates out"
        )
    if getattr(args, "label_smoothing_factor", 0):
        wrong.append("label_smoothing_factor is not part of the loss; leave it at 0, and use temperature in config=")
    if getattr(args, "use_liger_kernel", False):
        wrong.append("use_liger_kernel=True leaves out the logits, which the loss compares; leave it out")
    if config.hidden and getattr(args, "torch_compile", False):
        wrong.append("torch_compile=True leaves out the hooks that record hidden states; use hidden=0, or no compiling")
    if config.hidden and getattr(args, "n_gpu", 0) > 1:
        wrong.append("hidden states are not recorded on several GPUs in one process; start one for each by torchrun")
    parallel = getattr(args, "parallelism_config", None)
    if parallel is not None and (getattr(parallel, "cp_enabled", False) or getattr(parallel, "sp_enabled", False)):
        wrong.append("context and sequence parallelism cut windows, whose next tokens are then unknown; leave them out")
    if wrong:
        raise ArgumentError("; ".join(wrong))
