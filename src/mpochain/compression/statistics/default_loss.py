"""Loss of a model without a given one, chosen by the kind of its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.statistics.outputs import Meaning, ModelOutput, model_outputs
from mpochain.compression.statistics.sampled_loss import sampled_classes, sampled_labels, sampled_values
from mpochain.surgery.masks import Masks

__all__ = ["DefaultLoss"]

# Predictions whose cross-entropy has gradients of less power are certain, or no classes.
_LEAST_POWER = 1e-6


class DefaultLoss:
    """Loss to targets sampled from the model's own predictions, one term per output.

    Classes and tokens get cross-entropy, several labels per input binary cross-entropy, and numbers (regression, a
    single logit, embeddings, hidden states) half the squared error relative to their root mean square in the first
    batch. What may be either gets the sum of both, with gradients of equal power: cross-entropy does not see a common
    shift of all outputs, so a regression would lose a direction, and with a single output everything. What an output
    means is decided with the first batch, see :func:`mpochain.compression.statistics.outputs.model_outputs`.

    Args:
        model: the model.
        seed: seed of the sampling.

    Attributes:
        description: the loss as text, known after the first call; "" before.

    Example:
        >>> loss = DefaultLoss(nn.ReLU())
        >>> loss(torch.randn(4, 1, requires_grad=True)).requires_grad, loss.description
        (True, 'squared error of the output (1 feature)')
    """

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self._model, self._seed = model, seed
        self.description = ""
        self.restart()

    def restart(self) -> None:
        """Sample the same targets again, for another pass over the data."""
        self._generator = torch.Generator("cpu").manual_seed(self._seed)
        self._meanings: dict[str, Meaning] = {}
        self._scales: dict[str, float] = {}
        self.expect({}, Masks(self._model, {}))

    def expect(self, arguments: Mapping[str, Any], masks: Masks, number: int | None = None) -> None:
        """Note the arguments and masks of the batch whose output comes next.

        Args:
            arguments: arguments of the model.
            masks: masks among them.
            number: number of the batch in its pass, from which its targets are sampled, so that they do not depend on
                the batches before it; None to go on with the numbers of these.
        """
        self._arguments, self._masks = arguments, masks
        if number is not None:
            self._generator.manual_seed(hash((self._seed, number)) % (1 << 63))

    @property
    def is_decided(self) -> bool:
        """Whether a batch has decided what the outputs mean."""
        return bool(self._meanings)

    def decide(self, output: Any) -> None:
        """Decide what the outputs mean by those of a batch that another process works on."""
        parts = model_outputs(self._model, output, self._arguments)
        for part in parts:
            self._decided(part)
        self._describe(parts)

    def __call__(self, output: Any) -> Tensor:
        """Compute the loss, summed over all rows that are not masked.

        Raises:
            DTypeError: the output has no tensor of floating point numbers.
            NonFiniteError: a prediction is NaN or infinite.
        """
        parts = model_outputs(self._model, output, self._arguments)
        terms = [self._term(part) for part in parts]
        self._describe(parts)
        return torch.stack([term.float() for term in terms]).sum()

    def _kept(self, part: ModelOutput, meaning: Meaning) -> Tensor | None:
        next_token = meaning == "classes" and _predicts_next(self._model)
        return self._masks.predictions(part.values.shape, next_token=next_token)

    def _decided(self, part: ModelOutput) -> Meaning:
        """What an output means; the scale of one of numbers is decided too."""
        meaning = self._meanings.setdefault(part.name, part.meaning)
        if meaning in ("values", "either") and part.name not in self._scales:
            rows, kept = part.values.detach().double().reshape(-1, part.values.shape[-1]), self._kept(part, meaning)
            self._scales[part.name] = _scale(rows if kept is None else rows[kept.to(rows.device)], meaning)
        return meaning

    def _term(self, part: ModelOutput) -> Tensor:
        meaning = self._decided(part)
        if meaning == "loss":
            return part.values
        values, kept = part.values, self._kept(part, meaning)
        if meaning == "classes":
            return sampled_classes(values, kept, self._generator)
        if meaning == "probabilities":
            return sampled_classes(values.clamp_min(torch.finfo(values.dtype).tiny).log(), kept, self._generator)
        if meaning == "labels":
            return sampled_labels(values, kept, self._generator)
        squared = sampled_values(values, kept, self._scales[part.name], self._generator)
        return squared + sampled_classes(values, kept, self._generator) if meaning == "either" else squared

    def _describe(self, parts: Iterable[ModelOutput]) -> None:
        if not self.description:
            self.description = "; ".join(self._described(part) for part in parts)

    def _described(self, part: ModelOutput) -> str:
        size = part.values.shape[-1] if part.values.ndim else 1
        return {
            "classes": f"cross-entropy of {part} ({size:,} classes)",
            "probabilities": f"cross-entropy of {part} ({size:,} classes, read as probabilities)",
            "labels": f"binary cross-entropy of {part} ({size:,} labels)",
            "values": f"squared error of {part} ({size:,} feature{'s' * (size > 1)})",
            "either": f"cross-entropy and squared error of {part} ({size:,} classes or features)",
            "loss": f"{part} itself, a scalar",
        }[self._meanings[part.name]]


def _scale(rows: Tensor, meaning: Meaning) -> float:
    """Standard deviation of sampled values around rows ``(n, features)``: their root mean square.

    For rows that may be classes, so that the gradients of both losses have the same power: that of cross-entropy to
    sampled labels is ``1 - sum_k p_k^2``.
    """
    if not len(rows):
        return 1.0
    if meaning == "either":
        power = float((1 - rows.softmax(-1).square().sum(-1)).mean())
        if power > _LEAST_POWER:
            return math.sqrt(rows.shape[1] / power)
    return float(rows.square().mean().sqrt()) or 1.0


def _predicts_next(model: nn.Module) -> bool:
    """Whether a position of a transformers model predicts the next label instead of its own."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return any(base.__name__.endswith(("ForCausalLM", "LMHeadModel")) for base in type(model).__mro__)
