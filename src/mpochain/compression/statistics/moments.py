"""What calibration data shows of each layer: second moments of what it reads and writes, and of the gradients there.

A low-rank approximation of ``W`` depends on the moments of its smaller side alone, so only these are kept: with
``out <= in`` those of the outputs and of the gradient by them, otherwise those of the inputs and of the gradient by
them. A chain needs those of both sides, so for the layers that may become one the moments of the inputs are kept too.
Sums are kept, never activations, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.recompute import Recomputation
from mpochain.compression.statistics.sums import LastInput, Slabs, Sums
from mpochain.errors import MPOError, NonFiniteError, SpecError
from mpochain.nn.dense import dense_parameters
from mpochain.surgery.calls import without_cache

__all__ = ["Moments", "collect_moments", "frozen", "moment_bytes", "run_batch"]

_ELEMENT = 4  # bytes of a float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one layer ``W (out, in)``, on its smaller side ``s``: means over input rows, float32.

    Attributes:
        activations: ``(s, s)``: ``E[y y^T]`` with ``y = W x`` if ``out <= in``, else ``E[x x^T]``, which layers that
            are given the same input share.
        gradients: ``(s, s)``: ``E[g g^T]`` with ``g`` the gradient of the loss by the output if ``out <= in``, else
            ``E[(W^T g)(W^T g)^T]``; None if no gradients were taken.
        input_power: ``E[|x|^2] / in``.
        gradient_power: ``E[|g|^2] / out``; None if no gradients were taken.
        rows: input rows that were seen.
        inputs: ``(in, in)``: ``E[x x^T]``, also where that is not the smaller side; None if it was not asked for.
    """

    activations: Tensor
    gradients: Tensor | None
    input_power: float
    gradient_power: float | None
    rows: int
    inputs: Tensor | None = None


def moment_bytes(layers: Mapping[str, nn.Module], *, gradients: bool, inputs: Collection[str] = ()) -> int:
    """The most that :func:`collect_moments` keeps for these layers: bytes, if no two share their input."""
    total = 0
    for name, layer in layers.items():
        shape = dense_parameters(layer)[0].shape
        # In place of the moments of the outputs, which follow from them.
        total += (shape[1] if name in inputs else min(shape)) ** 2 + (min(shape) ** 2 if gradients else 0)
    return total * _ELEMENT


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The output of a model for one batch: a tensor, a tuple of arguments, or a mapping of named ones.

    Raises:
        SpecError: another type of batch.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    raise SpecError(
        f"a calibration batch is a tensor, a tuple of arguments or a mapping of named ones, got {type(batch).__name__}"
    )


def collect_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    inputs: Collection[str] = (),
) -> dict[str, Moments]:
    """Run a model over calibration batches and sum up what its layers see.

    The model is put into evaluation mode while it runs, and back. Its parameters and their gradients stay as they are.

    Args:
        model: runs on the device it is on.
        layers: by name, dense layers of the model.
        batches: see :func:`run_batch`.
        loss: from the model's output to a scalar, summed over tokens; None takes no gradients.
        inputs: names of the layers whose moments of the inputs are wanted even where these are the larger side.

    Raises:
        SpecError: no batches, or a batch of another type.
        NonFiniteError: NaN or infinite activations or gradients, naming the first layer that had them.
        MPOError: a layer that no batch reached, or that shared its input with another in some batches only.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> found = collect_moments(model, {"2": model[2]}, [torch.ones(5, 4)])
        >>> found["2"].rows, found["2"].activations.shape  # of its two outputs
        (5, torch.Size([2, 2]))
    """
    slabs = Slabs()
    sums = {name: Sums(name, layer, name in inputs, slabs) for name, layer in layers.items()}
    last = LastInput()
    again = Recomputation()
    hooks = [
        layer.register_forward_pre_hook(sums[name].before(last, again, loss is not None))
        for name, layer in layers.items()
    ]
    if loss is not None:
        hooks += [layer.register_forward_hook(sums[name].after) for name, layer in layers.items()]
    count = 0
    try:
        # Activations that wait for their gradients would take twice as much as a small model.
        with frozen(model), without_cache(model), again.of(model) if loss is not None else nullcontext():
            for count, batch in enumerate(batches, 1):
                last.clear()
                with torch.set_grad_enabled(loss is not None):
                    if loss is None:
                        run_batch(model, batch)
                    else:
                        try:
                            # The output has no name, so that its logits are gone when the gradients begin.
                            loss(run_batch(model, batch)).backward()
                        except NonFiniteError:
                            # The first layer that was given NaN says more than the output.
                            for each in sums.values():
                                each.require_finite(count)
                            raise
                for each in sums.values():
                    each.require_finite(count)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise SpecError("calibration needs at least one batch")
    unmet = [name for name, each in sums.items() if not each.rows]
    if unmet:
        raise MPOError(f"no calibration batch reached {unmet[0]}; leave it out with ignore=, or use other data")
    unweighted = [name for name, each in sums.items() if each.gradients is None]
    if loss is not None and unweighted:
        raise MPOError(
            f"no gradient of the loss reached {unweighted[0]}; leave it out with ignore=, or give another loss="
        )
    for each in sums.values():
        each.divide()
    found = {}
    for name, each in sums.items():
        # Of another layer, where both are given the same input.
        seen = sums[each.owner].inputs if each.keeps_inputs else None
        if not each.wide:
            activations = _present(seen)
        elif seen is not None:
            activations = each.weight.float() @ seen @ each.weight.float().T
        else:
            activations = _present(each.outputs)
        found[name] = Moments(
            activations,
            each.gradients,
            each.input_power / each.rows,
            each.gradient_power / each.rows if loss is not None else None,
            each.rows,
            seen,
        )
    return found


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters, which are not needed and cost a third of the work."""
    training = {module: module.training for module in model.modules()}
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


def _present(total: Tensor | None) -> Tensor:
    assert total is not None
    return total
