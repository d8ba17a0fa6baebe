"""Training loop with AdamW that resumes bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mpochain.distributed import done_by_first, team_of_group, trains_together
from mpochain.errors import NonFiniteError
from mpochain.execution import fast_products, predicted_plans
from mpochain.surgery.fingerprint import fingerprint
from mpochain.surgery.wrappers import unwrapped
from mpochain.system.files import require_writable
from mpochain.system.interrupts import run_of_steps
from mpochain.system.locks import locked
from mpochain.system.progress import TrainingProgress
from mpochain.train.config import TrainConfig, learning_rate
from mpochain.train.groups import scaled_groups
from mpochain.train.record import CurvePoint, TrainResult, earlier_result, record_of
from mpochain.train.state import restore_state, save_state
from mpochain.train.stored import read_state

__all__ = ["train"]

Batch = TypeVar("Batch")


# Hash of the weights that an interrupted run of a model started from, by its checkpoint. The model itself is now partly
# trained, and the same call resumes all the same.
_interrupted: WeakKeyDictionary[nn.Module, dict[Path, str]] = WeakKeyDictionary()


@contextmanager
def _seeded(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Make dropout depend only on the seed and the step, so that a resumed run draws the same masks.

    The state of torch's generators is restored afterwards.
    """
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step) % (1 << 63))
        yield


def _undivided(batch: Batch) -> Iterable[tuple[Batch, float]]:
    return [(batch, 1.0)]


def _target_count(batch: Any) -> int:
    return int(batch[1].numel())


@torch.inference_mode(False)
@torch.enable_grad()
@predicted_plans()
def train(
    model: nn.Module,
    sample: Callable[[torch.Generator, int], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    config: TrainConfig,
    *,
    parts: Callable[[Batch], Iterable[tuple[Batch, float]]] = _undivided,
    tokens: Callable[[Batch], int] = _target_count,
    scales: Mapping[str, float] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    shared: bool = False,
    label: str = "training",
) -> TrainResult:
    """Train ``model`` in place, with the fastest float32 matrix products of the machine.

    Args:
        model: trained on its present device.
        sample: draws the batch of a step (0-based) from a generator. Random numbers within layers, such as dropout
            masks, depend only on the seed and the step; torch's own generators keep their state.
        loss: mean loss per token of a batch, a differentiable scalar.
        config: see :class:`TrainConfig`.
        parts: splits a batch into parts that fit into memory, each with its share of the tokens; their gradients are
            added.
        tokens: returns the number of tokens of a batch that have a target; by default batches are
            ``(inputs, targets)``.
        scales: learning rate factors by parameter name, 1 for others. Weight decay does not depend on them.
        evaluate: called every ``config.evaluate_every`` steps and after the last; its time does not count as training.
        checkpoint: file with the state of the run. If it exists, the run resumes from it, bit for bit on the same
            machine with the same number of threads and version of torch. One run at a time may use it. If several
            processes train the model, the first of them writes it, and all of them read it; of a sharded model each
            writes its shards to a folder beside it.
        identity: further properties that identify the run, such as the hash of its data (JSON); a checkpoint with
            another identity is refused.
        shared: whether several processes share every batch: ``sample`` draws the same in all of them, ``parts`` returns
            those of the process, and the result is the same in all of them.
        label: name of the run in progress messages.

    Returns:
        Losses, evaluations, tokens and seconds of all sessions.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another model, other weights at the start, another
            configuration or identity.
        ArgumentError: ``scales`` names a parameter that the model does not have.
        NonFiniteError: a loss or gradient is NaN or infinite; the step is not taken, so parameters and checkpoint stay
            as they were before it.
        OutputError: the checkpoint's folder is not writable, or another run uses the checkpoint; checked before the
            first step.
        KeyboardInterrupt: Ctrl-C. Under ``mpochain.system.interrupts.interrupts_between_steps``, which the command
            line installs, the current step is finished and the checkpoint written first. Otherwise it is raised at
            once, in the middle of a step: the last checkpoint is intact, but the parameters of ``model`` may be partly
            updated. The same call with the checkpoint resumes and overwrites them.
    """
    # Names and hashes are those of the model inside DistributedDataParallel.
    inner = unwrapped(model)
    optimizer = torch.optim.AdamW(
        scaled_groups(inner, scales or {}, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
    generator = torch.Generator("cpu").manual_seed(config.seed)
    result = TrainResult()
    setting = {**config.model_dump(mode="json"), **(identity or {})}
    if scales is not None:
        setting["scales"] = dict(sorted(scales.items()))
    start, together = "", trains_together(model)
    team = team_of_group(together=together)
    apart = together and not shared  # each process has a result of its own

    def resume(checkpoint: Path) -> TrainResult:
        nonlocal start
        start = weights = fingerprint(inner)
        result = TrainResult()
        if checkpoint.exists():
            record, stored = read_state(checkpoint, together=together)
            result = earlier_result(checkpoint, record, setting, together=apart)
            start = _interrupted.get(inner, {}).get(checkpoint.resolve(), weights)
            renamed = restore_state(checkpoint, stored, inner, optimizer, generator, start=(record["start"], start))
            start = (None if renamed else record["start"]) or start
        _interrupted.setdefault(inner, {})[checkpoint.resolve()] = start
        return result

    def write_checkpoint() -> None:
        if checkpoint is not None:
            record = record_of(setting, start, result, together=apart)
            save_state(checkpoint, inner, optimizer, generator, record, together=together)

    def append_evaluation() -> None:
        metrics = evaluate() if evaluate is not None else {}
        model.train()
        since = result.losses[result.curve[-1].step if result.curve else 0 :]
        result.curve.append(CurvePoint(result.steps, sum(since) / len(since), metrics))

    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer.zero_grad(set_to_none=True)  # drop gradients that the caller left
    progress: TrainingProgress | None = None
    with _alone(checkpoint, together=together), run_of_steps() as interrupted:
        if checkpoint is not None:
            result = resume(checkpoint)
        try:
            while result.steps < config.steps:
                began = time.perf_counter()
                batch = sample(generator, result.steps)
                count = tokens(batch)
                if progress is None:
                    progress = TrainingProgress(label, config.steps, start=result.steps, tokens_per_step=count)
                    progress.__enter__()
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, result.steps) * group["scale"]
                value = 0.0
                with _seeded(model, config.seed, result.steps):
                    for part, share in parts(batch):
                        with fast_products():
                            scaled = loss(model, part) * share
                        scaled.backward()
                        value += scaled.item()
                        del scaled  # frees its graph before the next one is built
                told = False
                if shared:
                    # All stop after the same step, if one of them was interrupted.
                    values = team.gathered((value, interrupted()))
                    value, told = sum(own for own, _ in values) / len(values), any(stop for _, stop in values)
                norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm).item()
                if not (math.isfinite(value) and math.isfinite(norm)):
                    raise NonFiniteError(
                        f"step {result.steps + 1}: the loss is {value} and the gradient norm {norm}; the parameters "
                        f"are still those of step {result.steps}. Lower the learning rate, use more warm-up steps, or "
                        "check the data of this batch"
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                result.losses.append(value)
                result.steps += 1
                result.tokens += count
                result.seconds += time.perf_counter() - began
                progress.update(result.steps, result.losses[-1])
                last = result.steps == config.steps
                if last or (config.evaluate_every and result.steps % config.evaluate_every == 0):
                    append_evaluation()
                stop = told if shared else interrupted()
                if last or stop or result.steps % config.checkpoint_every == 0:
                    write_checkpoint()
                if stop:
                    raise KeyboardInterrupt
        finally:
            optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress.__exit__(None, None, None)
    if checkpoint is not None:
        del _interrupted[inner][checkpoint.resolve()]
    return result


@contextmanager
def _alone(checkpoint: Path | None, *, together: bool) -> Iterator[None]:
    """Be the only run with this checkpoint; of processes that train one model, the first holds the lock."""
    with ExitStack() as stack:
        if checkpoint is not None:
            with done_by_first(together=together) as locks:
                if locks:
                    require_writable(checkpoint.parent)
                    stack.enter_context(locked(checkpoint.with_name(f".{checkpoint.name}.mpochain-lock"), checkpoint))
        yield
