"""Damping of the gradients' moments, chosen for each layer on data that were set aside from the fit.

With few tokens, a zero gradient does not prove that an output is unimportant, so a share of the mean diagonal is added
to the moments of the gradients. How much is best depends on the layer: where a few tokens hold most of the gradients'
power, as in the value projections of first blocks, thirty times as much as elsewhere.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mpochain.compression.statistics.moments import Moments
from mpochain.compression.statistics.projections import Projections, damped_fits, fit, losses

__all__ = ["DAMPING", "TRIED", "best_damped_fit"]

DAMPING = 0.1
"""Share that is added where no data were set aside."""

_OFFERED = (0.03, 0.1, 0.3, 1.0)

TRIED = len(_OFFERED)
"""How many dampings are tried where data were set aside."""

# Of the damping in Moments.chosen.
_NAME = "damping"

# Low rank is judged at these shares of all ranks.
_SHARES = (0.2, 0.4, 0.6, 0.8)


def best_damped_fit(weight: Tensor, moments: Moments | None) -> tuple[float, Projections]:
    """The damping whose low-rank approximations lose least on the data that were set aside, and these approximations.

    The damping is noted in the moments, and a second call takes it from there.

    Args:
        weight: ``(out, in)``.
        moments: moments of the layer, with gradients; the damping is :data:`DAMPING` without them or without data set
            aside.

    Example:
        >>> import torch
        >>> damping, projections = best_damped_fit(torch.ones(2, 3), None)
        >>> damping, len(projections.errors)
        (0.1, 3)
    """
    if moments is None or moments.held_out is None or moments.gradients is None:
        return DAMPING, fit(weight, moments, damping=DAMPING)

    known = moments.chosen.get(_NAME)
    if known is not None:
        return known, fit(weight, moments, damping=known)

    def loss(projections: Projections) -> float:
        lost = losses(projections, weight, moments.judging)
        ranks = [round(share * (len(lost) - 1)) for share in _SHARES]
        return float(np.log(np.maximum(lost[ranks], 1e-300)).mean())

    fits = zip(_OFFERED, damped_fits(weight, moments, _OFFERED), strict=True)
    damping, projections = min(fits, key=lambda offered: loss(offered[1]))
    moments.chosen[_NAME] = damping
    return damping, projections
