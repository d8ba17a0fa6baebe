"""Arithmetic of the parts of a compression, counted from the shapes of layers."""

from __future__ import annotations

__all__ = ["build_work", "fit_work", "moments_work"]

# FLOPs of a fit per cubed smaller side, and those of building a layer per cubed smaller side and per product of the
# smaller side with both, at the rate of a large product. From times of layers of 576 to 2816 features (decision 80).
_FIT, _BUILD, _BUILD_SIDES = 88.0, 15.0, 24.0


def fit_work(shape: tuple[int, int], dampings: int = 1) -> float:
    """FLOPs of the weighted low-rank fits of a layer ``(out, in)``, at the rate of a large product.

    Eigendecompositions of the smaller side dominate, so the larger side hardly counts.

    Args:
        shape: ``(out, in)``.
        dampings: fits that are tried, see :mod:`mpochain.compression.statistics.damping`.

    Example:
        >>> fit_work((8, 16)) == fit_work((16, 8)) == fit_work((8, 8))
        True
    """
    return _FIT * dampings * min(shape) ** 3


def build_work(shape: tuple[int, int]) -> float:
    """FLOPs of one more fit of a layer ``(out, in)`` and of its interpolative form, at the rate of a large product.

    Example:
        >>> build_work((16, 8)) > fit_work((16, 8))
        True
    """
    out, in_ = shape
    small = min(shape)
    return fit_work(shape) + _BUILD * small**3 + _BUILD_SIDES * small * out * in_


def moments_work(shape: tuple[int, int], rows: int, *, gradients: bool) -> float:
    """FLOPs of the second moments of a layer ``(out, in)`` over calibration rows.

    Example:
        >>> moments_work((8, 16), 10, gradients=True) == 2 * 2 * 10 * 8 * 8
        True
    """
    out, in_ = shape
    square = 2.0 * rows * min(shape) ** 2
    if not gradients:
        return square
    # The gradients of a layer with more outputs are seen through its weight.
    return 2 * square + (2.0 * rows * out * in_ if out > in_ else 0.0)
