"""Second moments of the inputs, outputs and gradients of layers on calibration data.

A low-rank approximation of ``W`` depends only on the moments of its smaller side, so only these are collected: those of
the outputs and of the gradients with respect to the outputs if ``out <= in``, otherwise those of the inputs and of the
gradients with respect to the inputs. A chain needs both sides, so the moments of the inputs are also collected for
layers that may become a chain. Only running sums are kept, so memory does not grow with the data.
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
from mpochain.errors import ArgumentError, MPOError, NonFiniteError
from mpochain.nn.dense import dense_parameters
from mpochain.surgery.calls import without_cache

__all__ = ["Moments", "collect_moments", "frozen", "moment_bytes", "run_batch"]

_ELEMENT = 4  # bytes of a float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of one layer ``W (out, in)`` on its smaller side ``s``: means over input rows, float32.

    Attributes:
        activations: ``(s, s)``: ``E[y y^T]`` with ``y = W x`` if ``out <= in``, else ``E[x x^T]``, which layers with
            the same input share as one tensor.
        gradients: ``(s, s)``: ``E[g g^T]`` with ``g`` the gradient of the loss with respect to the output if
            ``out <= in``, else ``E[(W^T g)(W^T g)^T]``; None if no gradients were taken.
        input_power: ``E[|x|^2] / in``.
        gradient_power: ``E[|g|^2] / out``; None if no gradients were taken.
        rows: number of input rows.
        inputs: ``(in, in)``: ``E[x x^T]``; None if ``out <= in`` and it was not requested.
    """

    activations: Tensor
    gradients: Tensor | None
    input_power: float
    gradient_power: float | None
    rows: int
    inputs: Tensor | None = None


def moment_bytes(layers: Mapping[str, nn.Module], *, gradients: bool, inputs: Collection[str] = ()) -> int:
    """Upper bound of the bytes that :func:`collect_moments` holds, reached if no two layers share their input."""
    total = 0
    for name, layer in layers.items():
        shape = dense_parameters(layer)[0].shape
        # The moments of the outputs follow from those of the inputs, so only one of them is stored.
        total += (shape[1] if name in inputs else min(shape)) ** 2 + (min(shape) ** 2 if gradients else 0)
    return total * _ELEMENT


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model with one batch: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        ArgumentError: the batch has another type.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    raise ArgumentError(
        "a calibration batch must be a tensor, a tuple of arguments or a mapping of keyword arguments, got "
        f"{type(batch).__name__}"
    )


def collect_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    inputs: Collection[str] = (),
) -> dict[str, Moments]:
    """Run a model over calibration batches and collect the second moments of its layers.

    The model runs in evaluation mode and is returned to its former mode. Parameters and their gradients stay unchanged.

    Args:
        model: model to run, on its own device.
        layers: dense layers of the model, by name.
        batches: tensors, tuples of arguments or mappings of keyword arguments, see :func:`mpochain.compress`.
        loss: function from the model's output to a scalar summed over tokens; None to collect no gradients.
        inputs: names of the layers whose moments of the inputs are collected even if the inputs are the larger side.

    Raises:
        ArgumentError: there are no batches, or a batch has another type.
        NonFiniteError: activations or gradients are NaN or infinite; the message names the first such layer.
        MPOError: no batch reached a layer, no gradient reached it, or it shared its input with another layer in some
            batches only.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> moments = collect_moments(model, {"2": model[2]}, [torch.ones(5, 4)])
        >>> moments["2"].rows, moments["2"].activations.shape  # of its two outputs
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
        # Without recomputation, activations kept for the backward pass would take twice the memory of a small model.
        with frozen(model), without_cache(model), again.of(model) if loss is not None else nullcontext():
            for count, batch in enumerate(batches, 1):
                last.clear()
                with torch.set_grad_enabled(loss is not None):
                    if loss is None:
                        run_batch(model, batch)
                    else:
                        try:
                            # The output is not bound to a name, so its logits are freed before the backward pass.
                            loss(run_batch(model, batch)).backward()
                        except NonFiniteError:
                            # Name the first layer with NaN in its input rather than report the output.
                            for layer_sums in sums.values():
                                layer_sums.require_finite(count)
                            raise
                for layer_sums in sums.values():
                    layer_sums.require_finite(count)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ArgumentError("calibration needs at least one batch")
    unreached = [name for name, layer_sums in sums.items() if not layer_sums.rows]
    if unreached:
        raise MPOError(f"no calibration batch reached {unreached[0]}; leave it out with ignore=, or use other data")
    without_gradients = [name for name, layer_sums in sums.items() if layer_sums.gradients is None]
    if loss is not None and without_gradients:
        raise MPOError(
            f"no gradient of the loss reached {without_gradients[0]}; leave it out with ignore=, or give another loss="
        )
    for layer_sums in sums.values():
        layer_sums.divide()
    moments = {}
    for name, layer_sums in sums.items():
        # Layers with the same input share the sums of one of them.
        input_moments = sums[layer_sums.owner].inputs if layer_sums.keeps_inputs else None
        if not layer_sums.is_wide:
            activations = _present(input_moments)
        elif input_moments is not None:
            weight = layer_sums.weight.float()
            activations = weight @ input_moments @ weight.T
        else:
            activations = _present(layer_sums.outputs)
        moments[name] = Moments(
            activations,
            layer_sums.gradients,
            layer_sums.input_power / layer_sums.rows,
            layer_sums.gradient_power / layer_sums.rows if loss is not None else None,
            layer_sums.rows,
            input_moments,
        )
    return moments


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and disable gradients of parameters, which would cost a third of the work."""
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
