"""Settings of the refinement of blocks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mpochain.errors import ArgumentError
from mpochain.validation import Integer, Number, Validated

__all__ = ["Refinement", "settings_of"]


class Refinement(Validated):
    """Settings of the refinement of blocks, see :func:`mpochain.compress`.

    Attributes:
        epochs: passes over the calibration batches for each block; one step per batch.
        learning_rate: peak learning rate of AdamW, which rises at first and falls to zero along a cosine. That of a
            matrix is at most a hundredth of the root mean square of its entries.
        gradients: whether errors of a block's outputs are weighted by the gradients of the loss with respect to them.
        codes: whether the codes of quantised weights are trained too, or only their scales. The rounding passes
            gradients on as if it were none (straight-through estimator).
        patience: passes without a smaller held-out error after which the training of a block ends.

    Raises:
        ArgumentError: a value is out of range or a name is unknown.

    Example:
        >>> Refinement(epochs=2)
        Refinement(epochs=2, learning_rate=0.0003, patience=2, gradients=True, codes=True)
    """

    epochs: Annotated[Integer, Field(ge=1)] = 6
    learning_rate: Annotated[Number, Field(gt=0.0)] = 3e-4
    patience: Annotated[Integer, Field(ge=1)] = 2
    gradients: bool = True
    codes: bool = True


def settings_of(refine: bool | Refinement) -> Refinement | None:
    """Settings of a refinement from the argument of :func:`mpochain.compress`; None for no refinement.

    Raises:
        ArgumentError: the argument is something else.

    Example:
        >>> settings_of(True), settings_of(False)
        (Refinement(epochs=6, learning_rate=0.0003, patience=2, gradients=True, codes=True), None)
    """
    if isinstance(refine, Refinement):
        return refine
    if not isinstance(refine, bool):
        raise ArgumentError(
            f"refine is True, False or mpochain.compression.Refinement(...), got {refine!r}; give one of them"
        )
    return Refinement() if refine else None
