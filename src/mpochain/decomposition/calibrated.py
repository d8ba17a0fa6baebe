"""Chains, and sums of chains, for the inputs a layer sees and the outputs that matter.

Minimises ``E[(y - y')^T G (y - y')]`` as :mod:`mpochain.decomposition.weighted` does, ``||G^1/2 (W - W') H^1/2||^2``
with ``H = E[x x^T]``, but over sums of chains of any dims. The weights do not factor over the sites, so there is no
closed form but for low rank; one product ``G (W - W') H`` gives the error and its gradient by every core.

All cores of all terms are improved together, by L-BFGS (Nocedal, Math. Comp. 35, 1980). What makes a few iterations
enough is its preconditioner: were ``G`` and ``H`` Kronecker products over the sites, of their partial traces, then the
normal matrix of the linear least squares problem of each core would be a Kronecker product too, of four small ones
that are inverted exactly. It takes no notice of the gauge, in which the bonds of a chain are free. For the factors of a
low rank it is the true normal matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpochain.arrays import (
    Array,
    cast,
    detached,
    namespace,
    norm,
    promoted,
    require_finite,
    require_matrix,
)
from mpochain.decomposition.gram import gram as decompose
from mpochain.decomposition.interleave import deinterleave, interleave
from mpochain.decomposition.metric import Metric, Root, dot, partial_traces
from mpochain.decomposition.rounding import fold_left, fold_right
from mpochain.decomposition.weighted import symmetric_moments
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["Calibration", "calibrated"]

# Steps that L-BFGS remembers; a step of which the error falls by less than the second number of itself is the last.
_MEMORY, _LEAST_GAIN = 10, 1e-7

# Of the fall that the slope promises, how much a step must bring (Armijo), and the shortest one that is tried.
_SUFFICIENT, _SHORTEST = 1e-4, 1e-6


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
        sum_.start(_Term(spec, metric, target))
    sum_.refit()
    errors = sum_.minimize(iterations)
    unit = metric.unit * size**2
    parts = []
    for term in sum_.terms:
        cores = _balanced(term.cores)
        share = size ** (1 / len(cores))
        parts.append(tuple(cast(core * share, matrix) for core in cores))
    return Calibration(tuple(parts), tuple(error * unit for error in errors), metric.square(target) * unit)


class _Term:
    """One chain of the sum."""

    def __init__(self, spec: ChainSpec, metric: Metric, like: Array) -> None:
        interleave(like, spec)  # refuses dims that do not fit
        self.spec, self._metric = spec, metric
        self.cores: list[Array] = []
        self._sizes = tuple(o * i for o, i in zip(spec.out_dims, spec.in_dims, strict=True))
        self.is_low_rank = (spec.out_dims, spec.in_dims) == ((spec.out_features, 1), (1, spec.in_features))
        self._outputs = partial_traces(metric.outputs, spec.out_dims, like)
        self._inputs = partial_traces(metric.inputs, spec.in_dims, like)

    def start(self, target: Array, weighted: Array | None = None) -> None:
        """From a target and ``G target H``, so that the error is at most that of no term at all.

        Low rank has a closed form. Of other chains one of two is taken, whichever leaves less: the TT-SVD of the
        target, with the Kronecker product of partial traces for its weights; or that of the gradient, divided by that
        product, which sees the true weights and is better for what low rank has left over.
        """
        xp = namespace(target)
        if self.is_low_rank:
            factors = self._metric.low_rank(target, self.spec.bonds[0])
            self.cores = _balanced(
                [xp.reshape(cast(f, target), s) for f, s in zip(factors, self.spec.core_shapes, strict=True)]
            )
            return
        best = -1.0
        weighted = self._metric.apply(target) if weighted is None else weighted
        for source, exponent in ((target, 0.5), (weighted, -0.5)):
            cores = self._split(source, exponent)
            matrix = self.matrix(cores)
            square, product = self._metric.square(matrix), dot([matrix], [weighted])
            length = product / square if square > 0 else 0.0
            if length * product > best:
                best = length * product
                self.cores = _balanced([cores[0] * length, *cores[1:]])

    def _split(self, source: Array, exponent: float) -> list[Array]:
        """TT-SVD of a matrix times powers of the partial traces; the cores are for the inverse roots of these."""
        spec = self.spec
        xp = namespace(source)
        tensor = interleave(source, spec)
        before, after = 1, math.prod(self._sizes)
        for k, size in enumerate(self._sizes):
            after //= size
            tensor = self._weigh(xp.reshape(tensor, (before, spec.out_dims[k], spec.in_dims[k], after)), k, exponent)
            before *= size
        padded = ChainSpec(spec.out_dims, spec.in_dims, bonds=spec.bonds)
        found = decompose(deinterleave(xp.reshape(tensor, self._sizes), padded), padded)
        return [self._weigh(core, k, -0.5) for k, core in enumerate(found.cores)]

    def _weigh(self, core: Array, site: int, exponent: float) -> Array:
        """``(a, o, i, b)`` times powers of the partial traces of a site."""
        xp = namespace(core)
        a, out, in_, b = core.shape
        core = self._outputs[site].power(exponent) @ xp.reshape(core, (a, out, in_ * b))
        weights = self._inputs[site].power(exponent)
        if b == 1:
            # One product, symmetric weights on the right, where many with a single column would take 30 times as long.
            return xp.reshape(xp.reshape(core, (a * out, in_)) @ weights, (a, out, in_, b))
        return xp.reshape(weights @ xp.reshape(core, (a * out, in_, b)), (a, out, in_, b))

    def matrix(self, cores: Sequence[Array]) -> Array:
        """The term itself."""
        xp = namespace(*cores)
        tensor = fold_left(cores[0])
        for core in cores[1:]:
            tensor = xp.reshape(tensor @ fold_right(core), (-1, core.shape[3]))
        return deinterleave(tensor, self.spec)

    def gradient(self, weighted: Array) -> list[Array]:
        """Of half the error by each core, where ``weighted`` is ``G (W - W') H``: minus what it has of each."""
        xp = namespace(weighted)
        rights = [xp.ones_like(self.cores[0][:1, :1, 0, 0])]
        for core in reversed(self.cores[1:]):
            rights.append(xp.reshape(fold_left(core) @ rights[-1], (core.shape[0], -1)))
        tensor = xp.reshape(interleave(weighted, self.spec), (1, -1))
        found = []
        for core, right in zip(self.cores, reversed(rights), strict=True):
            tensor = xp.reshape(tensor, (-1, right.shape[1]))
            found.append(xp.reshape(-(tensor @ xp.matrix_transpose(right)), core.shape))
            tensor = xp.matrix_transpose(fold_left(core)) @ tensor
        return found

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """For each core the inverse of its normal matrix, as it were with partial traces for weights."""
        xp = namespace(*self.cores)
        edge = xp.ones_like(self.cores[0][:1, :1, 0, 0])
        lefts, rights = [edge], [edge]
        for k, core in enumerate(self.cores[:-1]):
            lefts.append(self._carried(lefts[-1], core, k))
        for k in range(self.spec.sites - 1, 0, -1):
            rights.append(self._carried(rights[-1], xp.permute_dims(self.cores[k], (3, 1, 2, 0)), k))
        inverses = [
            (Root(left).power(-1.0), Root(right).power(-1.0))
            for left, right in zip(lefts, reversed(rights), strict=True)
        ]

        def apply(gradients: list[Array]) -> list[Array]:
            found = []
            for k, (gradient, (left, right)) in enumerate(zip(gradients, inverses, strict=True)):
                shape = gradient.shape
                core = xp.reshape(left @ fold_right(self._weigh(gradient, k, -1.0)), shape)
                found.append(xp.reshape(fold_left(core) @ right, shape))
            return found

        return apply

    def _carried(self, edge: Array, core: Array, site: int) -> Array:
        """One site more: ``sum edge[a, a'] G[o, o'] H[i, i'] core[a, o, i, b] core[a', o', i', b']``."""
        xp = namespace(core)
        pushed = xp.reshape(edge @ fold_right(self._weigh(core, site, 1.0)), core.shape)
        return xp.matrix_transpose(fold_left(core)) @ fold_left(pushed)


class _Sum:
    """All terms, and what they leave."""

    def __init__(self, target: Array, metric: Metric) -> None:
        self._target, self._metric = target, metric
        self.terms: list[_Term] = []

    def start(self, term: _Term) -> None:
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

    def _gradient(self, weighted: Array) -> list[Array]:
        return [each for term in self.terms for each in term.gradient(weighted)]

    def _assign(self, cores: Sequence[Array]) -> None:
        used = 0
        for term in self.terms:
            term.cores = list(cores[used : used + term.spec.sites])
            used += term.spec.sites

    def minimize(self, iterations: int) -> list[float]:
        """L-BFGS; returns the error before and after each iteration."""
        _, weighted, error = self._rest()
        gradient = self._gradient(weighted)
        errors = [error]
        history: list[_Step] = []
        while len(errors) <= iterations and error > 0.0:
            direction = self._direction(gradient, history)
            slope = 2 * dot(gradient, direction)
            cores = [core for term in self.terms for core in term.cores]
            length = 1.0
            while slope < 0.0 and length >= _SHORTEST:
                self._assign(_moved(cores, length, direction))
                _, weighted, reached = self._rest()
                if reached <= error + _SUFFICIENT * length * slope:
                    break
                # The minimum of the parabola through both errors with this slope, kept away from the ends.
                lowest = -slope * length**2 / (2 * (reached - error - slope * length))
                length = min(max(lowest, 0.1 * length), 0.5 * length)
            else:
                self._assign(cores)
                if not history:
                    break
                history = []  # once more from the preconditioned gradient alone
                continue
            before, gradient = gradient, self._gradient(weighted)
            step, change = [length * each for each in direction], _moved(gradient, -1.0, before)
            curvature = dot(step, change)
            if curvature > 0.0:
                history = [*history[1 - _MEMORY :], _Step(step, change, 1 / curvature)]
            gain, error = error - reached, reached
            errors.append(error)
            if gain <= _LEAST_GAIN * error:
                break
        return errors

    def _direction(self, gradient: list[Array], history: Sequence[_Step]) -> list[Array]:
        """The two loops of L-BFGS around the preconditioner."""
        applied = [term.preconditioner() for term in self.terms]

        def precondition(vector: list[Array]) -> list[Array]:
            found: list[Array] = []
            for term, apply in zip(self.terms, applied, strict=True):
                found += apply(vector[len(found) : len(found) + term.spec.sites])
            return found

        vector, factors = gradient, []
        for each in reversed(history):
            factor = each.inverse * dot(each.step, vector)
            factors.append(factor)
            vector = _moved(vector, -factor, each.change)
        if history:
            last = history[-1]
            scale = 1 / (last.inverse * dot(last.change, precondition(last.change)))
        else:
            scale = 2 / len(gradient)  # each core alone would be moved to its best, all of them too far
        vector = [scale * each for each in precondition(vector)]
        for each, factor in zip(history, reversed(factors), strict=True):
            vector = _moved(vector, factor - each.inverse * dot(each.change, vector), each.step)
        return [-each for each in vector]


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of all cores, by how much it changed the gradient, and the inverse of the product of both."""

    step: list[Array]
    change: list[Array]
    inverse: float


def _moved(arrays: Sequence[Array], length: float, direction: Sequence[Array]) -> list[Array]:
    return [array + length * each for array, each in zip(arrays, direction, strict=True)]


def _balanced(cores: Sequence[Array]) -> list[Array]:
    """The same chain with cores of equal norms."""
    norms = [norm(core) for core in cores]
    if not all(norms):
        return list(cores)
    logarithm = math.fsum(map(math.log, norms)) / len(cores)
    return [core * math.exp(logarithm - math.log(each)) for core, each in zip(cores, norms, strict=True)]
