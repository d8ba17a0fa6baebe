"""Record of a refined block, and what a report says of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpochain.wording import counted

__all__ = ["RefinedBlock", "described", "refinement_note"]


@dataclass(frozen=True)
class RefinedBlock:
    """Result of refining one block.

    Errors are means over held-out rows (tokens) of the squared error of the block's output, relative to the square of
    the dense block's output in the dense model, and weighted by the gradients of the loss with a mean weight of 1.

    Attributes:
        name: name of the block in the model.
        parameters: number of parameters that were trained.
        before: held-out error before the training.
        after: held-out error after it; ``before`` for a block that was left as it was.
        epochs: passes over the calibration data until the kept state; 0 for a block that was left as it was.
        seconds: duration of the training.
    """

    name: str
    parameters: int
    before: float
    after: float
    epochs: int
    seconds: float


def described(block: RefinedBlock) -> str:
    """The result of one block in a few words.

    Example:
        >>> described(RefinedBlock("layers.0", 9000, 0.04, 0.03, 6, 12.0))
        'layers.0 refined: held-out error 0.04 -> 0.03 after 6 epochs'
        >>> described(RefinedBlock("layers.0", 9000, 0.04, 0.04, 0, 12.0))
        'layers.0 stays as it was: no lower held-out error than 0.04'
    """
    if not block.epochs:
        return f"{block.name} stays as it was: no lower held-out error than {block.before:.4g}"
    passes = counted(block.epochs, "epoch")
    return f"{block.name} refined: held-out error {block.before:.4g} -> {block.after:.4g} after {passes}"


def refinement_note(blocks: Sequence[RefinedBlock]) -> str:
    """The errors of all blocks before and after in one line.

    Example:
        >>> block = RefinedBlock("layers.0", 9000, 0.04, 0.03, 6, 12.0)
        >>> refinement_note([block, RefinedBlock("layers.1", 9000, 0.05, 0.05, 0, 12.0)])
        'refined 1 of 2 blocks in 24 s; squared error of their outputs on rows set aside, mean over blocks: 0.0450...'
    """
    changed = sum(block.epochs > 0 for block in blocks)
    seconds = sum(block.seconds for block in blocks)
    before, after = (sum(getattr(block, name) for block in blocks) / len(blocks) for name in ("before", "after"))
    return (
        f"refined {changed} of {counted(len(blocks), 'block')} in {seconds:,.0f} s; squared error of their outputs on "
        f"rows set aside, mean over blocks: {before:.4f} before, {after:.4f} after. The errors of single layers are "
        "those before"
    )
