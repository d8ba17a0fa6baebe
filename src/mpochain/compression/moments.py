"""What calibration data shows of each layer: second moments of its inputs, and of the gradient by its outputs.

Sums are kept, never activations, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.errors import MPOError, NonFiniteError, SpecError
from mpochain.nn.dense import dense_parameters

__all__ = ["Moments", "collect_moments", "moment_bytes", "run_batch"]

_ELEMENT = 4  # bytes of a float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one layer.

    Attributes:
        gram: ``E[x x^T] (in, in)``, the mean over input rows, float32; layers that are given the same input share it.
        output_gram: ``E[g g^T] (out, out)`` with ``g`` the gradient of the loss by the output, float32; None if no
            gradients were taken.
        rows: input rows that were seen.
    """

    gram: Tensor
    output_gram: Tensor | None
    rows: int


def moment_bytes(layers: Mapping[str, nn.Module], *, gradients: bool) -> int:
    """The most that :func:`collect_moments` keeps for these layers: bytes, if no two share their input."""
    total = 0
    for layer in layers.values():
        out, in_ = dense_parameters(layer)[0].shape
        total += in_**2 + (out**2 if gradients else 0)
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
) -> dict[str, Moments]:
    """Run a model over calibration batches and sum up what its layers see.

    The model is put into evaluation mode while it runs, and back. Its parameters and their gradients stay as they are.

    Args:
        model: runs on the device it is on.
        layers: by name, dense layers of the model.
        batches: see :func:`run_batch`.
        loss: from the model's output to a scalar, summed over tokens; None takes no gradients.

    Raises:
        SpecError: no batches, or a batch of another type.
        NonFiniteError: NaN or infinite activations or gradients, naming the first layer that had them.
        MPOError: a layer that no batch reached, or that shared its input with another in some batches only.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> found = collect_moments(model, {"0": model[0]}, [torch.ones(5, 4)])
        >>> found["0"].rows, found["0"].gram[0]
        (5, tensor([1., 1., 1., 1.]))
    """
    sums = _Sums(gradients=loss is not None)
    hooks = [layer.register_forward_pre_hook(sums.before(name)) for name, layer in layers.items()]
    if loss is not None:
        hooks += [layer.register_forward_hook(sums.after(name)) for name, layer in layers.items()]
    count = 0
    try:
        with _frozen(model):
            for count, batch in enumerate(batches, 1):
                sums.next_batch()
                with torch.set_grad_enabled(loss is not None):
                    output = run_batch(model, batch)
                    if loss is not None:
                        loss(output).backward()
                sums.require_finite(count)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise SpecError("calibration needs at least one batch")
    unmet = [name for name in layers if name not in sums.rows]
    if unmet:
        raise MPOError(
            f"no calibration batch reached {unmet[0]}; leave it out with ignore=, or calibrate with other data"
        )
    grams = {name: total / sums.rows[name] for name, total in sums.grams.items()}
    return {
        name: Moments(
            grams[sums.owner[name]],
            sums.output_grams[name] / sums.rows[name] if loss is not None else None,
            sums.rows[name],
        )
        for name in layers
    }


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
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


class _Sums:
    """The running sums of all layers."""

    def __init__(self, *, gradients: bool) -> None:
        self.grams: dict[str, Tensor] = {}
        self.output_grams: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        # Which layer's sum stands for a layer: its own, or that of one with the same input.
        self.owner: dict[str, str] = {}
        self._gradients = gradients
        self._last: tuple[Tensor, str] | None = None

    def next_batch(self) -> None:
        self._last = None

    def before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            x = arguments[0]
            shared = self._last is not None and self._last[0] is x
            owner = self._last[1] if shared and self._last is not None else name
            if self.owner.setdefault(name, owner) != owner:
                raise MPOError(
                    f"{name} has the same input as {owner} in some calibration batches only; calibrate in one call per "
                    "kind of batch"
                )
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            if owner == name:
                _add(self.grams, name, rows)
                self._last = x, name
            self.rows[name] = self.rows.get(name, 0) + rows.shape[0]
            if self._gradients and not x.requires_grad:
                # Parameters are frozen, so gradients begin at the first layers that are looked at.
                return (x.detach().requires_grad_(), *arguments[1:])
            return None

        return hook

    def after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def add(gradient: Tensor) -> None:
            _add(self.output_grams, name, gradient.detach().reshape(-1, gradient.shape[-1]).float())

        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            output.register_hook(add)

        return hook

    def require_finite(self, batch: int) -> None:
        """The diagonal alone tells: a square is finite only where the entry is."""
        for what, sums in (("inputs", self.grams), ("gradients", self.output_grams)):
            for name, total in sums.items():
                if not bool(torch.isfinite(total.diagonal()).all()):
                    raise NonFiniteError(
                        f"calibration batch {batch}: the {what} of {name} hold NaN or infinite numbers; check the "
                        "batch, or run the model in a wider type"
                    )


def _add(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
    if name in sums:
        sums[name].addmm_(rows.T, rows)
    else:
        sums[name] = rows.T @ rows
