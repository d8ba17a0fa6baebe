"""Calibrated decomposition: chains, and sums of chains, fitted under second moments of inputs and output weights.

Minimises ``E[(y - y')^T G (y - y')]`` as :mod:`mpochain.decomposition.weighted` does, ``||G^1/2 (W - W') H^1/2||^2``
with ``H = E[x x^T]``, but over sums of chains of any dims. The weights do not factor over the sites, so only low rank
has a closed form; one product ``G (W - W') H`` gives the error and its gradient with respect to every core.

All cores of all terms are improved together by L-BFGS. Few iterations suffice because of its preconditioner, see
:mod:`mpochain.decomposition.weighted_chain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpochain.arrays import Array, cast, detached, in_range, ldexp, norm, promoted, require_finite, require_matrix
from mpochain.decomposition.lbfgs import minimize
from mpochain.decomposition.metric import Metric, dot
from mpochain.decomposition.scaling import equalised
from mpochain.decomposition.weighted import symmetric_moments
from mpochain.decomposition.weighted_chain import WeightedChain
from mpochain.errors import ArgumentError
from mpochain.linalg import named
from mpochain.spec import ChainSpec

__all__ = ["Calibration", "calibrated"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A sum of chains fitted to a matrix, with the history of its error.

    Attributes:
        terms: cores ``(r_left, out, in, r_right)`` of each term.
        errors: squared weighted error at the start, then after each iteration; it never increases.
        scale: squared weighted norm of the matrix.
        relative_error: relative error in the weighted norm; 0 for a zero matrix.
    """

    terms: tuple[tuple[Array, ...], ...]
    errors: tuple[float, ...]
    scale: float
    relative_error: float


def calibrated(
    matrix: Array,
    terms: ChainSpec | Sequence[ChainSpec],
    gram: Array | None = None,
    output_gram: Array | None = None,
    *,
    iterations: int = 50,
    ridge: float = 1e-8,
    precision: Literal["float32", "float64"] = "float64",
    name: str = "matrix",
) -> Calibration:
    """Fit a chain, or a sum of chains, to a matrix under weights of its inputs and outputs.

    The iteration approaches a local optimum and is deterministic. If the first term is of low rank (dims
    ``(out,1)|(1,in)``, see :func:`mpochain.shapes.low_rank`), the result is never worse than the best such term alone,
    which has the closed form of :func:`~mpochain.decomposition.weighted_low_rank`.

    Args:
        matrix: ``W (out, in)``, any float type.
        terms: the spec of one chain, or of each term of a sum. They are initialised in this order, each from the
            residual of the terms before it, so a low-rank term should come first.
        gram: ``H (in, in)``, second moments of the inputs, up to a factor; the identity if not given.
        output_gram: ``G (out, out)``, weights of the outputs, up to a factor; the identity if not given.
        iterations: largest number of iterations. Each costs little more than the product ``G W H``.
        ridge: added to the diagonals of ``H`` and ``G``, relative to their mean diagonals, so that directions absent
            from the calibration data keep a small weight.
        precision: element type of the computation; ``"float32"`` takes half the time, but cannot resolve relative
            errors below 1e-3.
        name: name of the matrix in errors.

    Raises:
        ArgumentError: no terms, or iterations, ridge or precision out of range.
        SpecError: dims that do not fit the matrix.
        ShapeError: moments that do not fit the matrix.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> from mpochain import shapes
        >>> random = np.random.default_rng(0)
        >>> W, x = random.normal(size=(8, 6)), random.normal(size=(100, 6)) * [9, 3, 1, 1, 1, 1]
        >>> low, chain = shapes.low_rank(8, 6, 1), ChainSpec((4, 2), (2, 3), 2)
        >>> fit = calibrated(W, [low, chain], x.T @ x)
        >>> [core.shape for cores in fit.terms for core in cores]
        [(1, 8, 1, 1), (1, 1, 6, 1), (1, 4, 2, 2), (2, 2, 3, 1)]
        >>> fit.relative_error < calibrated(W, low, x.T @ x).relative_error
        True
    """
    specs = (terms,) if isinstance(terms, ChainSpec) else tuple(terms)
    if not specs:
        raise ArgumentError("a calibrated sum needs at least one spec")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ArgumentError(f"iterations must be an integer of at least 0, got {iterations!r}")
    if precision not in ("float32", "float64"):
        raise ArgumentError(f"precision must be 'float32' or 'float64', got {precision!r}")
    if not ridge >= 0.0:
        raise ArgumentError(f"ridge must be a number of at least 0, got {ridge!r}")
    require_matrix(matrix, name)
    weight64 = cast(promoted(detached(matrix), name), "float64")
    require_finite(weight64, name)
    out, in_ = weight64.shape
    G, power_G = symmetric_moments(output_gram, out, ridge, weight64, f"the weights of the outputs of {name}")
    H, power_H = symmetric_moments(gram, in_, ridge, weight64, f"the moments of the inputs of {name}")
    metric = Metric(G, H, precision)
    # Scaled to unit norm, so that no square overflows or underflows in a short type.
    ranged, exponent = in_range(weight64)
    size = norm(ranged) or 1.0
    target = cast(ranged / size, precision)
    with named(name):
        sum_ = _Sum(target, metric)
        for spec in specs:
            sum_.start(WeightedChain(spec, metric, target))
        sum_.refit()
        errors = minimize(sum_, iterations)
    unit, power = metric.unit * size**2, 2 * exponent + power_G + power_H
    fitted = tuple(tuple(cast(core, matrix) for core in equalised(term.cores, size, exponent)) for term in sum_.terms)
    scale = metric.square(target)
    return Calibration(
        fitted,
        tuple(ldexp(error * unit, power) for error in errors),
        ldexp(scale * unit, power),
        math.sqrt(errors[-1] / scale) if scale else 0.0,
    )


class _Sum:
    """Sum of all terms and its residual, as an objective of L-BFGS."""

    def __init__(self, target: Array, metric: Metric) -> None:
        self._target, self._metric = target, metric
        # ``G (W - W') H`` at the last evaluation of the error, for the gradient.
        self._weighted = target
        self.terms: list[WeightedChain] = []

    def start(self, term: WeightedChain) -> None:
        """Add a term, initialised from the residual of the terms before it."""
        rest, weighted, _ = self._rest()
        term.start(rest, weighted)
        self.terms.append(term)

    def refit(self) -> None:
        """Refit low-rank terms to the residual of the others; worth half a dozen iterations, at the cost of one."""
        for term in self.terms:
            if term.is_low_rank and len(self.terms) > 1:
                rest, _, _ = self._rest()
                term.start(rest + term.matrix(term.cores))

    def _rest(self) -> tuple[Array, Array, float]:
        """``W - W'``, ``G (W - W') H`` and the squared error."""
        rest = self._target
        for term in self.terms:
            rest = rest - term.matrix(term.cores)
        weighted = self._metric.apply(rest)
        return rest, weighted, max(dot([rest], [weighted]), 0.0)

    @property
    def arrays(self) -> list[Array]:
        """The cores of all terms."""
        return [core for term in self.terms for core in term.cores]

    def move_to(self, arrays: Sequence[Array]) -> None:
        """Replace the cores of all terms."""
        used = 0
        for term in self.terms:
            term.cores = list(arrays[used : used + term.spec.sites])
            used += term.spec.sites

    def error(self) -> float:
        """The squared weighted error."""
        _, self._weighted, error = self._rest()
        return error

    def gradient(self) -> list[Array]:
        """See :class:`mpochain.decomposition.lbfgs.Objective`."""
        return [gradient for term in self.terms for gradient in term.gradient(self._weighted)]

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """The preconditioners of all terms, as one block-diagonal preconditioner."""
        blocks = [term.preconditioner() for term in self.terms]

        def apply(gradients: list[Array]) -> list[Array]:
            result: list[Array] = []
            for term, block in zip(self.terms, blocks, strict=True):
                result += block(gradients[len(result) : len(result) + term.spec.sites])
            return result

        return apply
