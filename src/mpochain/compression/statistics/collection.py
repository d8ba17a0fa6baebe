"""One pass of a model over calibration batches, which sums the moments of its layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.collected import Collected, collected
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.statistics.given_gradients import GivenGradients
from mpochain.compression.statistics.moments import frozen, run_batch
from mpochain.compression.statistics.recompute import InputsChangedError, Recomputation
from mpochain.compression.statistics.shared_sums import add_up
from mpochain.compression.statistics.square_sum import Slabs
from mpochain.compression.statistics.sums import InputMoments, Sums, observed, tokens_counted
from mpochain.distributed import Team
from mpochain.errors import ArgumentError, NonFiniteError
from mpochain.nn import SeparateExperts
from mpochain.surgery.calls import without_cache
from mpochain.surgery.masks import Masks, arguments_of

__all__ = ["NothingCountedError", "collect"]

_logger = logging.getLogger(__name__)

_Loss = Callable[[Any], Tensor] | GivenGradients
_Run = Callable[[nn.Module, Any], Any]


class NothingCountedError(ArgumentError):
    """The masks of all batches leave no position."""


def collect(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    loss: _Loss | DefaultLoss | None = None,
    inputs: Collection[str] = (),
    outputs: Collection[str] = (),
    standing: Mapping[nn.Module, nn.Module] | None = None,
    division: Division = UNDIVIDED,
    run: _Run = run_batch,
    in_parts: bool = False,
) -> Collected:
    """Run a model over calibration batches and collect the second moments of its layers.

    Args:
        model: see :func:`mpochain.compression.collect_moments`.
        layers: dense layers of the model, by name.
        batches: see :func:`mpochain.compression.statistics.moments.run_batch`.
        loss: function from the model's output to a scalar summed over tokens, or a
            :class:`mpochain.compression.statistics.default_loss.DefaultLoss`, or a
            :class:`mpochain.compression.statistics.given_gradients.GivenGradients`; None to collect no gradients.
        inputs: names of the layers whose moments of the inputs are collected even if the inputs are the larger side.
        outputs: names of the layers whose moments of the gradients with respect to the outputs are collected even if
            the outputs are the larger side.
        standing: what stands in the model for some of the layers, such as a compressed layer. The moments are those of
            the dense weights on the inputs and gradients in the model as it is.
        division: processes that share the batches, of which all give the same ones, and each gets the moments of its
            own layers.
        run: what is done with each batch, which gives the output that the loss reads.
        in_parts: whether ``run`` computes a part of the model at a time, whose activations fit into memory.

    Raises:
        ArgumentError: there are no batches, a batch has another type, all positions are masked, or the loss is no
            scalar.
        NonFiniteError: the loss, activations or gradients are NaN or infinite.
    """
    if loss is not None and any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ArgumentError(
            "the model was built or loaded under torch.inference_mode(), so gradients cannot pass through it; build or "
            "load it outside, or choose a method without gradients, such as svd_llm"
        )
    seen = {name: (standing or {}).get(layer, layer) for name, layer in layers.items()}

    team = division.team

    def summed(*, recomputing: bool) -> dict[str, Sums] | None:
        """The sums; None if a block changed its inputs, in any process."""
        slabs, read, changed = Slabs(), (0, 0), False
        sums = {name: Sums(name, layer, name in inputs, name in outputs, slabs) for name, layer in layers.items()}
        with team.together():
            try:
                read = _pass(model, seen, sums, batches, loss, run, recomputing=recomputing, team=team)
            except InputsChangedError:
                changed = True
        told = team.gathered((changed, read))
        if any(changed for changed, _ in told):
            return None
        _require_counted(sum(count for _, (count, _) in told), sum(masked for _, (_, masked) in told))
        add_up(sums, division)
        return sums

    with torch.inference_mode(False):
        sums = summed(recomputing=loss is not None and not in_parts)
        if sums is None:
            if isinstance(loss, DefaultLoss):
                loss.restart()
            sums = summed(recomputing=False)
        assert sums is not None
        return collected(sums, gradients=loss is not None, division=division)


def _pass(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    sums: Mapping[str, Sums],
    batches: Iterable[Any],
    loss: _Loss | DefaultLoss | None,
    run: _Run,
    *,
    recomputing: bool,
    team: Team,
) -> tuple[int, int]:
    """Run the model over the batches of this process and add what its layers read to their sums.

    Returns:
        The number of batches read, and of those among them that are masked entirely.
    """
    latest, again = InputMoments(), Recomputation()
    count = masked = 0
    masks = Masks(model, {})
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(without_cache(model))
        if recomputing:
            # Without recomputation, activations kept for the backward pass would take twice the memory of a small
            # model.
            stack.enter_context(again.of(model))
        for name, mixture, members in _mixtures(model, sums):
            stack.enter_context(tokens_counted(name, mixture, members, again, lambda: masks))
        for name, layer in layers.items():
            stack.enter_context(observed(layer, sums[name], latest, again, lambda: masks, loss is not None))
        for number, batch in enumerate(batches, 1):
            is_own = team.works_on(number)
            if not is_own and not (isinstance(loss, DefaultLoss) and not loss.is_decided):
                continue
            arguments = arguments_of(model, batch)
            masks = Masks(model, arguments)
            if not is_own:
                if not masks.empty:
                    with again.uncounted():
                        _decide(loss, run, model, batch, arguments, masks)
                continue
            count += 1
            if masks.empty:
                masked += 1
                continue
            with torch.set_grad_enabled(loss is not None):
                if loss is None:
                    run(model, batch)
                else:
                    try:
                        _backward(loss, run, model, batch, arguments, masks, number)
                    except NonFiniteError:
                        # Name the first layer with NaN in its input rather than report the output.
                        for layer_sums in sums.values():
                            layer_sums.require_finite(number)
                        raise
            latest.clear()
            for layer_sums in sums.values():
                layer_sums.require_finite(number)
    return count, masked


def _require_counted(count: int, masked: int) -> None:
    """Refuse data without any position that counts, and tell of batches without one."""
    if not count:
        raise ArgumentError("calibration needs at least one batch")
    if masked == count:
        raise NothingCountedError(
            f"the masks of all {count} calibration batches leave no position; give batches with data"
        )
    if masked:
        _logger.warning("%d of %d calibration batches are masked entirely and were left out", masked, count)


def _mixtures(model: nn.Module, sums: Mapping[str, Sums]) -> Iterator[tuple[str, SeparateExperts, list[Sums]]]:
    """Mixtures of experts by name, with the sums of their layers."""
    members: dict[str, list[Sums]] = {}
    for name, layer_sums in sums.items():
        mixture = ".".join(name.split(".")[:-2])  # without the expert and the matrix
        members.setdefault(mixture, []).append(layer_sums)
    for name, module in model.named_modules():
        if isinstance(module, SeparateExperts) and name in members:
            yield name, module, members[name]


def _decide(
    loss: _Loss | DefaultLoss | None,
    run: _Run,
    model: nn.Module,
    batch: Any,
    arguments: Mapping[str, Any],
    masks: Masks,
) -> None:
    """Let the first batch decide what the outputs mean, though another process works on it."""
    assert isinstance(loss, DefaultLoss)
    loss.expect(arguments, masks)
    with torch.no_grad():
        loss.decide(run(model, batch))


def _backward(
    loss: _Loss | DefaultLoss,
    run: _Run,
    model: nn.Module,
    batch: Any,
    arguments: Mapping[str, Any],
    masks: Masks,
    number: int,
) -> None:
    """Run a batch and take the gradients of its loss."""
    if isinstance(loss, DefaultLoss):
        loss.expect(arguments, masks, number)
    if isinstance(loss, GivenGradients):
        loss.backward(run(model, batch))
        return
    # The output is not bound to a name, so its logits are freed before the backward pass.
    value: object = loss(run(model, batch))
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"loss= must return a scalar tensor, summed over tokens, got {shape}")
    if not value.isfinite():
        raise NonFiniteError(
            f"calibration batch {number}: the loss is {value.item()}; check loss= and the batch, or run the model in "
            "float32"
        )
    if value.requires_grad:
        value.backward()
