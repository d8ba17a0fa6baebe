"""Layers that no calibration batch or no gradient reaches: which stay dense, and which are errors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from torch import nn

from mpochain.compression.selection import names_of, select
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError

__all__ = ["require_reached"]

_logger = logging.getLogger(__name__)


def require_reached(
    model: nn.Module, opened: Mapping[str, Target], unreached: Mapping[str, str], targets: Collection[str] | None
) -> None:
    """Refuse layers without statistics that the user asked for, and log the others, which stay dense.

    Args:
        model: the model.
        opened: all layers to compress, by name.
        unreached: names of those without statistics, with the reason.
        targets: patterns as the user gave them; None for all layers.

    Raises:
        ArgumentError: no layer is left; or a pattern names such a layer, or matches only such layers.
    """
    if not unreached:
        return
    name, reason = next(iter(unreached.items()))
    if len(unreached) == len(opened):
        advice = (
            "the loss does not depend on the outputs of the layers; give a loss= that does"
            if "gradient" in reason
            else "give data for these layers"
        )
        raise ArgumentError(f"there is no layer left to compress: {name}, for one, cannot be, as {reason}; {advice}")
    for pattern in targets or ():
        chosen = [layer for layer in select(model, [pattern], embeddings=True) if layer in opened]
        missed = [layer for layer in chosen if layer in unreached]
        named = [layer for layer in missed if pattern in names_of(model, opened[layer].module)]
        if named or (chosen and missed == chosen):
            layer = (named or missed)[0]
            raise ArgumentError(
                f"{layer} is chosen by {pattern!r} in targets=, but {unreached[layer]}; leave it out, or give data and "
                "a loss= that reach it"
            )
    _logger.warning(
        "%d of %d layers stay dense, such as %s: %s; the report lists them", len(unreached), len(opened), name, reason
    )
