"""Chains, and sums of chains, for the inputs a layer sees and the outputs that matter.

Minimises ``E[(y - y')^T G (y - y')]`` as :mod:`mpochain.decomposition.weighted` does, ``||G^1/2 (W - W') H^1/2||^2``
with ``H = E[x x^T]``, but over sums of chains of any dims. The weights do not factor over the sites, so there is no
closed form but for low rank; one product ``G (W - W') H`` gives the error and its gradient by every core.

All cores of all terms are improved together, by L-BFGS; what makes a few iterations enough is its preconditioner, see
:mod:`mpochain.decomposition.weighted_chain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpochain.arrays import Array, cast, detached, norm, promoted, require_finite, require_matrix
from mpochain.decomposition.lbfgs import minimize
from mpochain.decomposition.metric import Metric, dot
from mpochain.decomposition.weighted import symmetric_moments
from mpochain.decomposition.weighted_chain import WeightedChain, balanced
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["Calibration", "calibrated"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Terms whose sum stands for a matrix, and how they came to it.

    Attributes:
        terms: cores ``(r_left, out, in, r_right)`` of each term.
        errors: squared weighted error of the start, then after each iteration; it never increases.
        scale: squared weighted norm of the matrix.
    """

    terms: tuple[tuple[Array, ...], ...]
    errors: tuple[float, ...]
    scale: float

    @property
    def relative_error(self) -> float:
        """Weighted norm of what the sum leaves out over that of the matrix; 0 for a matrix without weight."""
        return math.sqrt(self.errors[-1] / self.scale) if self.scale else 0.0


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

    The result is on the way to a local optimum, depends on nothing but the arguments, and is never worse than the first
    term alone where that is of low rank (dims ``(out,1)|(1,in)``, see :func:`mpochain.shapes.low_rank`), whose best is
    the closed form of :func:`~mpochain.decomposition.weighted_low_rank`.

    Args:
        matrix: ``W (out, in)``, any float type.
        terms: the spec of one chain, or of each term of a sum. They are started in this order, each from what those
            before it leave, so low rank is best given first.
        gram: ``H (in, in)``, second moments of the inputs, up to a factor; the identity if not given.
        output_gram: ``G (out, out)``, weights of the outputs, up to a factor; the identity if not given.
        iterations: the most that are made. Each costs little more than the product ``G W H``.
        ridge: share of their mean diagonal that is added to the diagonals of both, so that directions which the
            calibration never met still count for a little.
        precision: what is computed in; ``"float32"`` takes half of the time and leaves relative errors below 1e-3
            unseen.
        name: what to call the matrix in errors.

    Raises:
        SpecError: no terms, dims that do not fit the matrix, or a number of iterations that is none.
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
        raise SpecError("a calibrated sum needs at least one spec")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise SpecError(f"iterations must be an integer of at least 0, got {iterations!r}")
    if precision not in ("float32", "float64"):
        raise SpecError(f"precision must be 'float32' or 'float64', got {precision!r}")
    if not ridge >= 0.0:
        raise SpecError(f"ridge must be a number of at least 0, got {ridge!r}")
    require_matrix(matrix, name)
    wide = cast(promoted(detached(matrix), name), "float64")
    require_finite(wide, name)
    out, in_ = wide.shape
    metric = Metric(
        symmetric_moments(output_gram, out, ridge, wide, f"the weights of the outputs of {name}"),
        symmetric_moments(gram, in_, ridge, wide, f"the moments of the inputs of {name}"),
        precision,
    )
    # Of unit size, so that no square overflows or vanishes in a short type.
    size = norm(wide) or 1.0
    target = cast(wide / size, precision)
    sum_ = _Sum(target, metric)
    for spec in specs:
        sum_.start(WeightedChain(spec, metric, target))
    sum_.refit()
    errors = minimize(sum_, iterations)
    unit = metric.unit * size**2
    parts = []
    for term in sum_.terms:
        cores = balanced(term.cores)
        share = size ** (1 / len(cores))
        parts.append(tuple(cast(core * share, matrix) for core in cores))
    return Calibration(tuple(parts), tuple(error * unit for error in errors), metric.square(target) * unit)


class _Sum:
    """All terms, and what they leave; an objective of L-BFGS."""

    def __init__(self, target: Array, metric: Metric) -> None:
        self._target, self._metric = target, metric
        # What the gradient is made of, found with the error.
        self._weighted = target
        self.terms: list[WeightedChain] = []

    def start(self, term: WeightedChain) -> None:
        """One term more, from what those before it leave."""
        rest, weighted, _ = self._rest()
        term.start(rest, weighted)
        self.terms.append(term)

    def refit(self) -> None:
        """Low rank once more, now beside the other terms: as good as half a dozen iterations, at the price of one."""
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
        """All cores."""
        return [core for term in self.terms for core in term.cores]

    def place(self, arrays: Sequence[Array]) -> None:
        """Other cores."""
        used = 0
        for term in self.terms:
            term.cores = list(arrays[used : used + term.spec.sites])
            used += term.spec.sites

    def error(self) -> float:
        """Squared, under the weights."""
        _, self._weighted, found = self._rest()
        return found

    def gradient(self) -> list[Array]:
        """See :class:`mpochain.decomposition.lbfgs.Objective`."""
        return [each for term in self.terms for each in term.gradient(self._weighted)]

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """Of each term by itself."""
        applied = [term.preconditioner() for term in self.terms]

        def apply(gradients: list[Array]) -> list[Array]:
            found: list[Array] = []
            for term, each in zip(self.terms, applied, strict=True):
                found += each(gradients[len(found) : len(found) + term.spec.sites])
            return found

        return apply
