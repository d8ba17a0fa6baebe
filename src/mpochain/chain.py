"""The chain as a value: cores, and the algebra of the matrix they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mpochain.arrays import Array, cast, dtype_name, namespace, norm, promoted, require_finite, zeros
from mpochain.decomposition import (
    automatic,
    check_cutoff,
    deinterleave,
    fold_left,
    fold_right,
    gram,
    orthogonalize,
    randomized,
    round_cores,
    tt_svd,
)
from mpochain.errors import DTypeError, ShapeError, SpecError
from mpochain.spec import ChainSpec

__all__ = ["MPOChain", "Method"]

Method = Literal["auto", "gram", "tt_svd", "randomized"]


@dataclass(frozen=True, eq=False, repr=False)
class MPOChain:
    """A matrix held as a chain of cores: an immutable value with dense algebra as its meaning.

    ``W[o_1..o_n, i_1..i_n] = sum over bonds of prod_k cores[k][r_{k-1}, o_k, i_k, r_k]``, both multi-indices
    row-major. Works on NumPy, PyTorch and JAX arrays; every operation returns a new chain of the same library, element
    type and device.

    Args:
        cores: arrays of shape ``(r_left, out, in, r_right)``, neighbours sharing a bond, end bonds 1.
        spec: their spec; needed only when the matrix is padded. Derived from the cores if ``None``.
        relative_error: ``||before - chain|| / ||before||`` of the decomposition or truncation that made the chain:
            exact from the discarded singular values, measured where padding or a short float type adds to it; 0
            where nothing was discarded.

    Raises:
        ShapeError: cores that do not fit each other or the spec, or a bond over the attainable one (use
            :meth:`from_cores`, which reduces it without loss).
        DTypeError: cores of several libraries or element types.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(64, 64))
        >>> chain = MPOChain.from_matrix(W, ChainSpec((4, 4, 4), (4, 4, 4), max_bond=8))
        >>> chain
        MPOChain(64x64 (4,4,4)|(4,4,4) bonds (8,8), 1,280 parameters, float64, relative_error=0.782)
        >>> x = np.ones((10, 64))
        >>> np.allclose(chain @ x, x @ chain.to_matrix().T)
        True
    """

    cores: tuple[Array, ...]
    spec: ChainSpec = field(default=None)  # type: ignore[assignment]  # filled in below, never None afterwards
    relative_error: float = 0.0

    def __post_init__(self) -> None:
        cores = tuple(self.cores)
        object.__setattr__(self, "cores", cores)
        given: ChainSpec | None = self.__dict__["spec"]
        spec = _spec_of(cores) if given is None else given
        if given is None and spec.clipped:
            raise ShapeError(
                f"the cores have bonds {spec.requested}, more than the attainable {spec.bonds}; "
                "MPOChain.from_cores(cores) reduces them without loss"
            )
        object.__setattr__(self, "spec", spec)
        namespace(*cores)
        shapes = tuple(tuple(core.shape) for core in cores)
        if shapes != spec.core_shapes:
            raise ShapeError(f"cores of shapes {shapes} do not fit the spec, whose cores are {spec.core_shapes}")
        kinds = {dtype_name(core) for core in cores}
        if len(kinds) > 1:
            raise DTypeError(f"the cores of a chain have one element type, got {', '.join(sorted(kinds))}; cast them")

    @classmethod
    def from_cores(cls, cores: Iterable[Array], spec: ChainSpec | None = None) -> MPOChain:
        """A chain from any fitting cores; bonds beyond the attainable are reduced without loss, by QR.

        Args:
            cores: arrays of shape ``(r_left, out, in, r_right)``.
            spec: where the true number of features is to be taken from, if the matrix is padded.

        Raises:
            ShapeError: cores that do not fit each other.

        Example:
            >>> import numpy as np
            >>> MPOChain.from_cores([np.ones((1, 2, 2, 9)), np.ones((9, 3, 1, 1))]).spec.bonds
            (3,)
        """
        cores = tuple(cores)
        shape = spec.shape if spec is not None else (None, None)
        if any(bond != core.shape[3] for bond, core in zip(_spec_of(cores).bonds, cores, strict=False)):
            wide = [promoted(core, f"core {k}") for k, core in enumerate(cores)]
            wide = orthogonalize(orthogonalize(wide, len(cores) - 1), 0)
            cores = tuple(cast(core, cores[0]) for core in wide)
        return cls(cores, _spec_of(cores, *shape))

    @classmethod
    def from_matrix(
        cls,
        matrix: Array,
        spec: ChainSpec,
        *,
        cutoff: float | None = None,
        method: Method = "auto",
        tolerance: float = 1e-3,
        seed: int = 0,
        name: str = "matrix",
    ) -> MPOChain:
        """The chain of a matrix; :func:`mpochain.decompose` is the same with dims in place of a spec.

        Args:
            matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32 and
                cast back. Gradients do not flow through a decomposition.
            spec: dims and the largest bonds.
            cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``.
            method: ``"auto"`` (the fastest whose error is within ``tolerance`` of exact SVDs), or one of ``"tt_svd"``
                (exact SVDs), ``"gram"`` (within 0.1 %) and ``"randomized"`` (fastest for small bonds).
            tolerance: of ``"auto"``: by what share the error may exceed that of exact SVDs; 0.01 is enough for the
                randomised one where bonds are small.
            seed: of the randomised method.
            name: what to call the matrix in errors.

        Raises:
            SpecError: dims that do not multiply to the shape, an impossible cutoff or tolerance, an unknown method.
            DTypeError: elements that are not floats.
            NonFiniteError: NaN or infinite entries.
        """
        if method == "auto":
            result = automatic(matrix, spec, cutoff=cutoff, tolerance=tolerance, seed=seed, name=name)
        elif method == "gram":
            result = gram(matrix, spec, cutoff=cutoff, name=name)
        elif method == "tt_svd":
            result = tt_svd(matrix, spec, cutoff=cutoff, name=name)
        elif method == "randomized":
            result = randomized(matrix, spec, cutoff=cutoff, seed=seed, name=name)
        else:
            raise SpecError(f"method must be 'auto', 'gram', 'tt_svd' or 'randomized', got {method!r}")
        # A cutoff may leave a bond wider than its smaller neighbour can feed; from_cores takes that back.
        chain = cls.from_cores(result.cores, spec)
        chain = cls(chain.cores, chain.spec, result.relative_error)
        # Neither padding nor the rounding of a short type is in the discarded singular values.
        inexact = chain._is_padded or chain._is_short
        return chain._with_exact_error(lambda: matrix) if inexact else chain

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the matrix."""
        return self.spec.shape

    @property
    def dtype(self) -> Any:
        """Element type of the cores."""
        return self.cores[0].dtype

    @property
    def T(self) -> MPOChain:  # noqa: N802  # the name matrices have in every array library
        """The chain of the transposed matrix: the same bonds, in and out axes exchanged."""
        xp = namespace(*self.cores)
        cores = tuple(xp.permute_dims(core, (0, 2, 1, 3)) for core in self.cores)
        return MPOChain(cores, self.spec.transposed(), self.relative_error)

    def to_matrix(self) -> Array:
        """The dense matrix ``(out_features, in_features)``, in the cores' element type."""
        xp = namespace(*self.cores)
        tensor = fold_left(self.cores[0])
        for core in self.cores[1:]:
            tensor = xp.reshape(tensor @ fold_right(core), (-1, core.shape[3]))
        return deinterleave(tensor, self.spec)

    def apply(self, x: Array) -> Array:
        """``x (..., in_features)`` to ``(..., out_features)``: ``x @ W^T``, swept from the last site to the first.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        xp = namespace(x, *self.cores)
        spec = self.spec
        if x.ndim == 0 or x.shape[-1] != spec.in_features:
            raise ShapeError(
                f"the chain maps {spec.in_features} features to {spec.out_features}; the last axis of x must be "
                f"{spec.in_features}, got shape {tuple(x.shape)}"
            )
        lead = tuple(x.shape[:-1])
        rows = math.prod(lead)
        missing = spec.padded_shape[1] - spec.in_features
        if missing:
            x = xp.concat([x, xp.broadcast_to(xp.zeros_like(x[..., :1]), (*lead, missing))], axis=-1)
        waiting, done = spec.padded_shape[1], 1
        state = x
        for core in reversed(self.cores):
            left, out, in_, right = core.shape
            waiting //= in_
            # (rows i_1..i_{k-1}, i_k r_k, o_{k+1}..o_n): the result is laid out for the next site as it is.
            state = xp.reshape(state, (rows * waiting, in_ * right, done))
            state = xp.reshape(core, (left * out, in_ * right)) @ state
            done *= out
        return xp.reshape(state, (*lead, done))[..., : spec.out_features]

    def __matmul__(self, x: Array) -> Array:
        """``chain @ x`` is :meth:`apply`: ``x (..., in) -> (..., out)``; a vector gives ``W x``."""
        return self.apply(x)

    def canonicalize(self, center: int = 0) -> MPOChain:
        """The same matrix with orthonormal cores on both sides of ``center`` (0-based).

        Left of the center ``sum_{r,o,i} conj(G) G = 1`` over the left axes, right of it over the right axes, so the
        norm of the matrix is the norm of the center core.

        Raises:
            SpecError: no such site.
        """
        if not isinstance(center, int) or not 0 <= center < self.spec.sites:
            raise SpecError(f"center must be a site from 0 to {self.spec.sites - 1}, got {center!r}")
        return self._rebuilt(orthogonalize(self._wide(), center), 0.0)

    def truncate(self, max_bond: int | None = None, *, cutoff: float | None = None) -> MPOChain:
        """A chain with smaller bonds, the best two-sided truncation bond by bond.

        Args:
            max_bond: bound for every bond; a value over the present bonds changes nothing.
            cutoff: allowed ``||chain - result|| / ||chain||``, in ``[0, 1)``.

        Returns:
            A chain whose ``relative_error`` is exact and relative to this chain, not to any earlier one.

        Raises:
            SpecError: a bond below 1 or a cutoff out of range.

        Example:
            >>> import numpy as np
            >>> chain = MPOChain.from_matrix(np.eye(16), ChainSpec((4, 4), (4, 4)))
            >>> chain.spec.bonds, chain.truncate(cutoff=1e-6).spec.bonds
            ((16,), (1,))
        """
        wanted = self.spec if max_bond is None else self.spec.with_bonds(max_bond)
        allowed = check_cutoff(cutoff)
        cores = self._wide()
        if allowed and self._is_padded:
            # The allowance is relative to the features, not to whatever the padding holds.
            allowed *= min(self.norm() / (norm(orthogonalize(cores, 0)[0]) or 1.0), 1.0)
        rounded = round_cores(cores, wanted.bonds, allowed)
        result = self._rebuilt(rounded.cores, rounded.relative_error)
        return result._with_exact_error(self.to_matrix) if self._is_padded or self._is_short else result

    def norm(self) -> float:
        """Frobenius norm of the matrix, from the cores alone; a padded chain is made dense to leave the padding out."""
        if self._is_padded:
            return norm(promoted(self.to_matrix(), "matrix"))
        return norm(orthogonalize(self._wide(), 0)[0])

    def relative_error_to(self, matrix: Array) -> float:
        """``||matrix - chain|| / ||matrix||`` by dense subtraction, the definition itself.

        Raises:
            ShapeError: the matrix is of another shape.
        """
        if tuple(matrix.shape) != self.shape:
            raise ShapeError(f"the chain is {self.shape}, got a matrix of shape {tuple(matrix.shape)}")
        wide = promoted(matrix, "matrix")
        difference = norm(wide - cast(self.to_matrix(), wide))
        scale = norm(wide)
        return difference / scale if scale else (0.0 if difference == 0.0 else math.inf)

    def __add__(self, other: MPOChain) -> MPOChain:
        """The chain of the summed matrices: bonds add up, clipped to what is attainable.

        Raises:
            SpecError: the chains have different dims (such a sum stays a tuple of chains, see ``terms=``).
        """
        if not isinstance(other, MPOChain):
            return NotImplemented
        mine, theirs = self.spec, other.spec
        if (mine.out_dims, mine.in_dims, mine.shape) != (theirs.out_dims, theirs.in_dims, theirs.shape):
            raise SpecError(
                f"only chains of equal dims add into one chain, got {mine} and {theirs}; keep others as a tuple of "
                "terms"
            )
        if mine.sites == 1:
            return MPOChain((self.cores[0] + other.cores[0],), mine)
        xp = namespace(*self.cores, *other.cores)
        cores = [xp.concat([self.cores[0], other.cores[0]], axis=3)]
        for a, b in zip(self.cores[1:-1], other.cores[1:-1], strict=True):
            upper = xp.concat([a, zeros((a.shape[0], *b.shape[1:]), a)], axis=3)
            lower = xp.concat([zeros((b.shape[0], *a.shape[1:]), b), b], axis=3)
            cores.append(xp.concat([upper, lower], axis=0))
        cores.append(xp.concat([self.cores[-1], other.cores[-1]], axis=0))
        return MPOChain.from_cores(cores, mine)

    def __mul__(self, factor: Any) -> MPOChain:
        """The chain of the matrix times a number, carried by the first core."""
        if not isinstance(factor, (int, float)) and getattr(factor, "ndim", None) != 0:
            return NotImplemented
        return MPOChain((cast(self.cores[0] * factor, self.cores[0]), *self.cores[1:]), self.spec)

    __rmul__ = __mul__

    def __neg__(self) -> MPOChain:
        return self * -1.0

    def __sub__(self, other: MPOChain) -> MPOChain:
        return self + (-other)

    def __repr__(self) -> str:
        return f"MPOChain({self.spec}, {dtype_name(self.cores[0])}, relative_error={self.relative_error:.3g})"

    @property
    def _is_padded(self) -> bool:
        return self.spec.shape != self.spec.padded_shape

    @property
    def _is_short(self) -> bool:
        return dtype_name(self.cores[0]) in ("bfloat16", "float16")

    def _with_exact_error(self, matrix: Callable[[], Array]) -> MPOChain:
        """The error measured on the features alone, after rounding: discarded weight counts padding and no rounding."""
        return MPOChain(self.cores, self.spec, self.relative_error_to(matrix()))

    def _wide(self) -> list[Array]:
        wide = [promoted(core, f"core {k}") for k, core in enumerate(self.cores)]
        for k, core in enumerate(wide):
            require_finite(core, f"core {k}")
        return wide

    def _rebuilt(self, cores: Sequence[Array], relative_error: float) -> MPOChain:
        chain = MPOChain.from_cores(tuple(cast(core, self.cores[0]) for core in cores), self.spec)
        return MPOChain(chain.cores, chain.spec, relative_error)


def _spec_of(cores: Sequence[Array], out_features: int | None = None, in_features: int | None = None) -> ChainSpec:
    """The spec of cores, after checking that they form a chain."""
    shapes = [tuple(core.shape) for core in cores]
    if not shapes or any(len(shape) != 4 or 0 in shape for shape in shapes):
        raise ShapeError(f"cores are arrays (r_left, out, in, r_right) without empty axes, got shapes {shapes}")
    edges = [1, *(shape[3] for shape in shapes)]
    if edges[-1] != 1 or any(shape[0] != edge for shape, edge in zip(shapes, edges, strict=False)):
        raise ShapeError(f"neighbouring cores must share their bond and the end bonds must be 1, got shapes {shapes}")
    return ChainSpec(
        [shape[1] for shape in shapes],
        [shape[2] for shape in shapes],
        bonds=edges[1:-1],
        out_features=out_features,
        in_features=in_features,
    )
