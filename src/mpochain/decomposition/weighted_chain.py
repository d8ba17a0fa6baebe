"""Chain fitted to a matrix with weights of inputs and outputs: initialisation, gradient and preconditioner.

If ``G`` and ``H`` were the Kronecker products of their partial traces over the sites, the normal matrix of the linear
least-squares problem of each core would be a Kronecker product of four small matrices, which has an exact inverse. That
inverse is the preconditioner. It is invariant under the gauge freedom of the bonds, and for the factors of a low-rank
term it is the inverse of the true normal matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mpochain.arrays import Array, cast, dtype_name, namespace, norm, zeros
from mpochain.decomposition.contraction import contracted
from mpochain.decomposition.gram import gram
from mpochain.decomposition.interleave import deinterleave, interleave
from mpochain.decomposition.metric import Metric, Root, dot, partial_traces
from mpochain.decomposition.rounding import left_unfolding, right_unfolding
from mpochain.decomposition.scaling import equalised
from mpochain.decomposition.zero import zero_cores
from mpochain.spec import ChainSpec

__all__ = ["WeightedChain"]

# A matrix below this norm, in a fit to a matrix of norm 1, is rounding error.
_ZERO = {"float32": 1e-6, "float64": 1e-14}


class WeightedChain:
    """A chain that approximates a matrix under a metric.

    Args:
        spec: spec of the chain.
        metric: weights of the outputs and inputs.
        like: the matrix, or an array of its shape, library and element type.

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
        interleave(like, spec)  # raises if the dims do not fit
        self.spec, self._metric = spec, metric
        self.cores: list[Array] = []
        self._sizes = tuple(o * i for o, i in zip(spec.out_dims, spec.in_dims, strict=True))
        self.is_low_rank = (spec.out_dims, spec.in_dims) == ((spec.out_features, 1), (1, spec.in_features))
        self._outputs = partial_traces(metric.outputs, spec.out_dims, like)
        self._inputs = partial_traces(metric.inputs, spec.in_dims, like)

    def start(self, target: Array, weighted: Array | None = None) -> None:
        """Initialise the cores such that the error is at most that of a zero term.

        Low rank has a closed form. Other chains start from the better of two TT-SVDs: of the target weighted by the
        Kronecker product of the partial traces, or of the gradient divided by that product, which uses the true weights
        and is better for the residual of a low-rank term. If nothing is left to approximate, the term is zero, with
        cores from which training can start.

        Args:
            target: the matrix to approximate.
            weighted: ``G target H``, computed if not given.
        """
        xp = namespace(target)
        if norm(target) <= _ZERO[dtype_name(target)]:
            self.cores = zero_cores([zeros(shape, target) for shape in self.spec.core_shapes], self.spec)
            return
        if self.is_low_rank:
            factors = self._metric.low_rank(target, self.spec.bonds[0])
            self.cores = equalised(
                [
                    xp.reshape(cast(factor, target), shape)
                    for factor, shape in zip(factors, self.spec.core_shapes, strict=True)
                ]
            )
            return
        largest = -1.0
        weighted = self._metric.apply(target) if weighted is None else weighted
        for source, exponent in ((target, 0.5), (weighted, -0.5)):
            cores = self._split(source, exponent)
            matrix = self.matrix(cores)
            square, product = self._metric.square(matrix), dot([matrix], [weighted])
            length = product / square if square > 0 else 0.0
            # Reduction of the squared error by the chain of this length.
            if length * product > largest:
                largest = length * product
                self.cores = equalised([cores[0] * length, *cores[1:]])

    def _split(self, source: Array, exponent: float) -> list[Array]:
        """TT-SVD of a matrix times powers of the partial traces, with cores multiplied by their inverse roots."""
        spec = self.spec
        xp = namespace(source)
        tensor = interleave(source, spec)
        before, after = 1, math.prod(self._sizes)
        for k, size in enumerate(self._sizes):
            after //= size
            tensor = self._weigh(xp.reshape(tensor, (before, spec.out_dims[k], spec.in_dims[k], after)), k, exponent)
            before *= size
        padded = ChainSpec(spec.out_dims, spec.in_dims, bonds=spec.bonds)
        decomposition = gram(deinterleave(xp.reshape(tensor, self._sizes), padded), padded)
        return [self._weigh(core, k, -0.5) for k, core in enumerate(decomposition.cores)]

    def _weigh(self, core: Array, site: int, exponent: float) -> Array:
        """A core ``(a, o, i, b)`` times a power of both partial traces of its site."""
        xp = namespace(core)
        a, out, in_, b = core.shape
        core = self._outputs[site].power(exponent) @ xp.reshape(core, (a, out, in_ * b))
        weights = self._inputs[site].power(exponent)
        if b == 1:
            # One product with the symmetric weights on the right; many products with one column take 30 times as long.
            return xp.reshape(xp.reshape(core, (a * out, in_)) @ weights, (a, out, in_, b))
        return xp.reshape(weights @ xp.reshape(core, (a * out, in_, b)), (a, out, in_, b))

    def matrix(self, cores: Sequence[Array]) -> Array:
        """The matrix of these cores."""
        return contracted(cores, self.spec)

    def gradient(self, weighted: Array) -> list[Array]:
        """Gradient of half the squared error with respect to each core, given ``weighted = G (W - W') H``."""
        xp = namespace(weighted)
        rights = [xp.ones_like(self.cores[0][:1, :1, 0, 0])]
        for core in reversed(self.cores[1:]):
            rights.append(xp.reshape(left_unfolding(core) @ rights[-1], (core.shape[0], -1)))
        tensor = xp.reshape(interleave(weighted, self.spec), (1, -1))
        gradients = []
        for core, right in zip(self.cores, reversed(rights), strict=True):
            tensor = xp.reshape(tensor, (-1, right.shape[1]))
            gradients.append(xp.reshape(-(tensor @ xp.matrix_transpose(right)), core.shape))
            tensor = xp.matrix_transpose(left_unfolding(core)) @ tensor
        return gradients

    def preconditioner(self) -> Callable[[list[Array]], list[Array]]:
        """Function that multiplies gradients by the inverse normal matrices, with the partial traces as weights."""
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
            result = []
            for k, (gradient, (left, right)) in enumerate(zip(gradients, inverses, strict=True)):
                shape = gradient.shape
                core = xp.reshape(left @ right_unfolding(self._weigh(gradient, k, -1.0)), shape)
                result.append(xp.reshape(left_unfolding(core) @ right, shape))
            return result

        return apply

    def _carried(self, edge: Array, core: Array, site: int) -> Array:
        """The edge extended by a site: ``sum edge[a, a'] G[o, o'] H[i, i'] core[a, o, i, b] core[a', o', i', b']``."""
        xp = namespace(core)
        pushed = xp.reshape(edge @ right_unfolding(self._weigh(core, site, 1.0)), core.shape)
        return xp.matrix_transpose(left_unfolding(core)) @ left_unfolding(pushed)
