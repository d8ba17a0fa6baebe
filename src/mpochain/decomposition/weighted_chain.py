"""A chain under weights of inputs and outputs: where it starts, its gradient, and its preconditioner.

Were ``G`` and ``H`` Kronecker products over the sites, of their partial traces, then the normal matrix of the linear
least squares problem of each core would be a Kronecker product too, of four small ones that are inverted exactly. It
takes no notice of the gauge, in which the bonds of a chain are free. For the factors of a low rank it is the true
normal matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mpochain.arrays import Array, cast, namespace, norm
from mpochain.decomposition.gram import gram as decompose
from mpochain.decomposition.interleave import deinterleave, interleave
from mpochain.decomposition.metric import Metric, Root, dot, partial_traces
from mpochain.decomposition.rounding import fold_left, fold_right
from mpochain.spec import ChainSpec

__all__ = ["WeightedChain", "balanced"]


class WeightedChain:
    """A chain that is to come near a matrix under a metric.

    Args:
        spec: of the chain.
        metric: weights of the outputs and inputs.
        like: the matrix.

    Raises:
        SpecError: dims that do not fit the matrix.

    Example:
        >>> import numpy as np
        >>> W = np.arange(24.0).reshape(4, 6)
        >>> chain = WeightedChain(ChainSpec((2, 2), (2, 3), 4), Metric(None, None, "float64"), W)
        >>> chain.start(W)
        >>> np.allclose(chain.matrix(chain.cores), W)
        True
    """

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
            self.cores = balanced(
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
                self.cores = balanced([cores[0] * length, *cores[1:]])

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


def balanced(cores: Sequence[Array]) -> list[Array]:
    """The same chain with cores of equal norms.

    Example:
        >>> import numpy as np
        >>> [round(norm(core), 9) for core in balanced([np.full((1, 1, 1, 1), 8.0), np.full((1, 1, 1, 1), 2.0)])]
        [4.0, 4.0]
    """
    norms = [norm(core) for core in cores]
    if not all(norms):
        return list(cores)
    logarithm = math.fsum(map(math.log, norms)) / len(cores)
    return [core * math.exp(logarithm - math.log(each)) for core, each in zip(cores, norms, strict=True)]
