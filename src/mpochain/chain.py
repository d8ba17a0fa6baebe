"""Matrix product operator (TT-matrix) as an immutable value, with matrix algebra on its cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpochain.algebra import ChainAlgebra
from mpochain.arrays import (
    Array,
    dtype_name,
    in_range,
    ldexp,
    namespace,
    norm,
    promoted,
    relative_distance,
    require_finite,
    times_power_of_two,
)
from mpochain.decomposition import (
    Algorithm,
    check_cutoff,
    contracted,
    decomposed_by,
    held,
    orthogonalize,
    orthogonalized,
    reduced,
    round_cores,
    swept,
)
from mpochain.errors import ArgumentError, DTypeError, ShapeError
from mpochain.spec import ChainSpec

__all__ = ["Algorithm", "MPOChain"]


@dataclass(frozen=True, eq=False, repr=False)
class MPOChain(ChainAlgebra):
    """A matrix stored as a chain of cores; an immutable value whose operations agree with dense matrix algebra.

    ``W[o_1..o_n, i_1..i_n] = sum over bonds of prod_k cores[k][r_{k-1}, o_k, i_k, r_k]``, both multi-indices
    row-major. Works on NumPy, PyTorch and JAX arrays; every operation returns a new chain of the same library, element
    type and device.

    Args:
        cores: arrays of shape ``(r_left, out, in, r_right)``, neighbours sharing a bond, end bonds 1.
        spec: spec of the cores; needed only if the matrix is padded. Derived from the cores if ``None``.
        relative_error: ``||before - chain|| / ||before||`` of the decomposition or truncation that produced the chain:
            exact, from the discarded singular values or measured; 0 if nothing was discarded. For a sum or product of
            chains it compares with the sum or product of the matrices before.
        error_is_bound: whether ``relative_error`` is an upper bound, as for sums and products, instead of exact.

    Raises:
        ShapeError: cores that do not fit each other or the spec, or a bond above the attainable maximum (use
            :meth:`from_cores`, which reduces it without loss).
        DTypeError: cores of several libraries or element types.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(64, 64))
        >>> chain = MPOChain.from_matrix(W, ChainSpec((4, 4, 4), (4, 4, 4), max_bond=8))
        >>> chain
        MPOChain(64x64 (4,4,4)|(4,4,4) bonds (8,8), 1,280 parameters, float64, relative_error=0.782)
        >>> M = np.ones((64, 10))
        >>> np.allclose(chain @ M, chain.to_matrix() @ M)
        True
    """

    cores: tuple[Array, ...]
    spec: ChainSpec = field(default=None)  # type: ignore[assignment]  # filled in below, never None afterwards
    relative_error: float = 0.0
    error_is_bound: bool = False

    def __post_init__(self) -> None:
        cores = tuple(self.cores)
        object.__setattr__(self, "cores", cores)
        explicit: ChainSpec | None = self.__dict__["spec"]
        shapes = _shapes(cores)
        spec = ChainSpec.from_core_shapes(shapes) if explicit is None else explicit
        if explicit is None and spec.clipped:
            raise ShapeError(
                f"the cores have bonds {spec.requested}, more than the attainable {spec.bonds}; "
                "MPOChain.from_cores(cores) reduces them without loss"
            )
        object.__setattr__(self, "spec", spec)
        namespace(*cores)
        if shapes != spec.core_shapes:
            raise ShapeError(f"cores of shapes {shapes} do not fit the spec, whose cores are {spec.core_shapes}")
        kinds = {dtype_name(core) for core in cores}
        if len(kinds) > 1:
            raise DTypeError(f"the cores must have one element type, got {', '.join(sorted(kinds))}; cast them")

    @classmethod
    def from_cores(cls, cores: Iterable[Array], spec: ChainSpec | None = None) -> MPOChain:
        """A chain with these cores; bonds above the attainable maximum are reduced without loss, by QR.

        Args:
            cores: arrays of shape ``(r_left, out, in, r_right)``.
            spec: needed only if the matrix is padded, for the true numbers of features; its bonds are ignored.

        Raises:
            ShapeError: cores that do not fit each other.

        Example:
            >>> import numpy as np
            >>> MPOChain.from_cores([np.ones((1, 2, 2, 9)), np.ones((9, 3, 1, 1))]).spec.bonds
            (3,)
        """
        cores = tuple(cores)
        features = spec.shape if spec is not None else (None, None)
        if ChainSpec.from_core_shapes(_shapes(cores)).clipped:
            precise = reduced([promoted(core, f"core {k}") for k, core in enumerate(cores)])
            cores = tuple(held(precise, cores[0]))
        return cls(cores, ChainSpec.from_core_shapes(_shapes(cores), *features))

    @classmethod
    def from_matrix(
        cls,
        matrix: Array,
        spec: ChainSpec,
        *,
        cutoff: float | None = None,
        method: Algorithm = "auto",
        tolerance: float = 1e-3,
        seed: int = 0,
        name: str = "matrix",
    ) -> MPOChain:
        """Decompose a matrix into a chain; :func:`mpochain.decompose` does the same from a spec or dims.

        Args:
            matrix: ``(out_features, in_features)``, any float type; bfloat16 and float16 are computed in float32 and
                cast back. Gradients do not flow through a decomposition.
            spec: dims, and the largest bonds to use.
            cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``.
            method: ``"auto"`` (the fastest whose error is within ``tolerance`` of exact SVDs), or one of ``"tt_svd"``
                (exact SVDs), ``"gram"`` (within 0.1 %) and ``"randomized"`` (fastest for small bonds).
            tolerance: for ``"auto"``, the largest relative excess of the error over that of exact SVDs; 0.01 allows the
                randomised algorithm if bonds are small.
            seed: seed of the randomised algorithm.
            name: name of the matrix in errors.

        Raises:
            SpecError: dims that do not multiply to the shape, or an impossible cutoff.
            ArgumentError: an unknown method, or a tolerance or seed out of range.
            DTypeError: elements that are not floats.
            NonFiniteError: NaN or infinite entries.
        """
        result = decomposed_by(method, matrix, spec, cutoff=cutoff, tolerance=tolerance, seed=seed, name=name)
        # A cutoff may leave a bond larger than its smaller neighbour allows; from_cores reduces it.
        chain = replace(cls.from_cores(result.cores, spec), relative_error=result.relative_error)
        # The discarded singular values include neither padding nor the rounding of a short type.
        return chain._with_exact_error(lambda: matrix) if chain._is_padded or chain._is_short else chain

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
        """The chain of the transposed matrix: the same bonds, with in and out axes exchanged."""
        xp = namespace(*self.cores)
        cores = tuple(xp.permute_dims(core, (0, 2, 1, 3)) for core in self.cores)
        return MPOChain(cores, self.spec.transposed(), self.relative_error, self.error_is_bound)

    def to_matrix(self) -> Array:
        """The dense matrix ``(out_features, in_features)``, in the cores' element type."""
        return contracted(self.cores, self.spec)

    def apply(self, x: Array) -> Array:
        """``x @ W^T``: ``x (..., in_features)`` to ``(..., out_features)``, without the dense matrix.

        Raises:
            ShapeError: the last axis of ``x`` is not ``in_features``.
        """
        namespace(x, *self.cores)
        spec = self.spec
        if x.ndim == 0 or x.shape[-1] != spec.in_features:
            raise ShapeError(
                f"the chain maps {spec.in_features} features to {spec.out_features}; the last axis of x must be "
                f"{spec.in_features}, got shape {tuple(x.shape)}"
            )
        return swept(self.cores, spec, x)

    def canonicalize(self, center: int = 0) -> MPOChain:
        """The same matrix with orthonormal cores on both sides of ``center`` (0-based).

        Cores left of the center are orthonormal over their left axes ``(r_left, o, i)``, cores right of it over their
        right axes ``(o, i, r_right)``, so the norm of the matrix is the norm of the center core.

        Raises:
            ArgumentError: ``center`` is not a site.
        """
        if not isinstance(center, int) or not 0 <= center < self.spec.sites:
            raise ArgumentError(f"center must be a site from 0 to {self.spec.sites - 1}, got {center!r}")
        cores = orthogonalize(self._promoted_cores(), center, like=self.cores[0])
        canonical = self._rebuilt(cores, self.relative_error)
        return canonical._changed(error_is_bound=self.error_is_bound)

    def truncate(self, max_bond: int | None = None, *, cutoff: float | None = None) -> MPOChain:
        """Truncate the chain to smaller bonds, optimally at each bond in turn.

        Args:
            max_bond: upper limit of every bond; a limit above the current bonds changes nothing.
            cutoff: allowed ``||chain - result|| / ||chain||``, in ``[0, 1)``.

        Returns:
            The truncated chain; its ``relative_error`` is exact and relative to this chain.

        Raises:
            SpecError: a bond below 1 or a cutoff out of range.

        Example:
            >>> import numpy as np
            >>> chain = MPOChain.from_matrix(np.eye(16), ChainSpec((4, 4), (4, 4)))
            >>> chain.spec.bonds, chain.truncate(cutoff=1e-6).spec.bonds
            ((16,), (1,))
        """
        target = self.spec if max_bond is None else self.spec.with_bonds(max_bond)
        allowed = check_cutoff(cutoff)
        cores = self._promoted_cores()
        if allowed and self._is_padded:
            # The cutoff is relative to the norm of the true matrix, without the padding.
            canonical, exponent = orthogonalized(cores, 0)
            part, own = self._unit_matrix()
            allowed *= min(ldexp(norm(part) / (norm(canonical[0]) or 1.0), own - exponent), 1.0)
        rounded = round_cores(cores, target.bonds, allowed)
        result = self._rebuilt(rounded.cores, rounded.relative_error)
        return result._with_exact_error(self.to_matrix) if self._is_padded or self._is_short else result

    def norm(self) -> float:
        """Frobenius norm of the matrix, from the cores; infinite if it exceeds float64.

        Only a padded chain is made dense, to exclude the padding.
        """
        return ldexp(*self._unit_norm())

    def relative_error_to(self, matrix: Array) -> float:
        """``||matrix - chain|| / ||matrix||``, by dense subtraction.

        Raises:
            ShapeError: the matrix has another shape.
        """
        if tuple(matrix.shape) != self.shape:
            raise ShapeError(f"the chain is {self.shape}, got a matrix of shape {tuple(matrix.shape)}")
        reference, exponent = in_range(promoted(matrix, "matrix"))
        unit, own = self._unit_matrix()
        return relative_distance(reference, times_power_of_two(unit, own - exponent))

    def __repr__(self) -> str:
        relation = "<=" if self.error_is_bound else "="
        return f"MPOChain({self.spec}, {dtype_name(self.cores[0])}, relative_error{relation}{self.relative_error:.3g})"

    @property
    def _is_padded(self) -> bool:
        return self.spec.shape != self.spec.padded_shape

    @property
    def _is_short(self) -> bool:
        return dtype_name(self.cores[0]) in ("bfloat16", "float16")

    def _with_exact_error(self, matrix: Callable[[], Array]) -> MPOChain:
        """The chain with its error measured on the true matrix, without padding and with rounding."""
        return MPOChain(self.cores, self.spec, self.relative_error_to(matrix()))

    def _unit_norm(self) -> tuple[float, int]:
        if self._is_padded:
            matrix, exponent = self._unit_matrix()
            return norm(matrix), exponent
        cores, exponent = orthogonalized(self._promoted_cores(), 0)
        return norm(cores[0]), exponent

    def _changed(self, **changes: Any) -> MPOChain:
        return replace(self, **changes)

    def _unit_matrix(self) -> tuple[Array, int]:
        """The dense matrix in compute precision and the range of safe products, and the power of two that scales it."""
        cores, exponents = zip(*(in_range(core) for core in self._promoted_cores()), strict=True)
        return contracted(cores, self.spec), sum(exponents)

    def _promoted_cores(self) -> list[Array]:
        cores = [promoted(core, f"core {k}") for k, core in enumerate(self.cores)]
        for k, core in enumerate(cores):
            require_finite(core, f"core {k}")
        return cores

    def _rebuilt(self, cores: Sequence[Array], relative_error: float) -> MPOChain:
        return replace(MPOChain.from_cores(held(cores, self.cores[0]), self.spec), relative_error=relative_error)


def _shapes(cores: Iterable[Array]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(core.shape) for core in cores)
