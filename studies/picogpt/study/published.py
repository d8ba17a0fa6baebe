"""Published results of arXiv 2603.28534."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "PUBLISHED_ERROR", "PUBLISHED_SHARE", "Published"]


@dataclass(frozen=True)
class Published:
    """Row of the paper's table.

    Attributes:
        parameters: number of parameters as the paper counts them.
        loss: validation loss, nats per token.
        accuracy: validation token accuracy.
    """

    parameters: int
    loss: float
    accuracy: float


# Rows by χ; None is the dense model.
PUBLISHED: dict[int | None, Published] = {
    None: Published(1_020_224, 1.860, 0.528),
    4: Published(78_336, 2.220, 0.368),
    8: Published(110_592, 1.950, 0.468),
    16: Published(191_872, 1.850, 0.516),
    32: Published(408_832, 1.850, 0.524),
}

# Relative error of a "random" 128x128 matrix at χ=4.
PUBLISHED_ERROR = 0.395
# Share of the dense accuracy at χ=16.
PUBLISHED_SHARE = 0.977
