"""Decomposition of a matrix into a chain (matrix product operator), or into a sum of chains with different dims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpochain.arrays import Array, cast, detached, in_range, namespace, norm, promoted
from mpochain.chain import Algorithm, MPOChain
from mpochain.decomposition import equalised
from mpochain.errors import ArgumentError
from mpochain.spec import ChainSpec

__all__ = ["decompose", "decompose_terms"]


def _resolved_spec(
    matrix: Array,
    spec: ChainSpec | None,
    out_dims: Iterable[int] | None,
    in_dims: Iterable[int] | None,
    max_bond: int | None,
) -> ChainSpec:
    if spec is not None:
        if not isinstance(spec, ChainSpec):
            raise ArgumentError(f"spec must be a ChainSpec, got {type(spec).__name__}")
        if out_dims is not None or in_dims is not None or max_bond is not None:
            raise ArgumentError("give either spec, or out_dims, in_dims and max_bond, not both")
        return spec
    if out_dims is None or in_dims is None:
        raise ArgumentError(
            f"a chain of a {tuple(matrix.shape)} matrix needs spec=, or both out_dims= and in_dims=; "
            "mpochain.shapes.balanced(n, sites) proposes dims"
        )
    return ChainSpec(out_dims, in_dims, max_bond)


def decompose(
    matrix: Array,
    spec: ChainSpec | None = None,
    *,
    out_dims: Iterable[int] | None = None,
    in_dims: Iterable[int] | None = None,
    max_bond: int | None = None,
    cutoff: float | None = None,
    method: Algorithm = "auto",
    tolerance: float = 1e-3,
    seed: int = 0,
    name: str = "matrix",
) -> MPOChain:
    """Decompose a matrix ``(out_features, in_features)`` into a chain.

    Args:
        matrix: NumPy, PyTorch or JAX array of any float type; bfloat16 and float16 are computed in float32 and cast
            back. Gradients do not flow through a decomposition.
        spec: dims and bonds of the chain; or give ``out_dims``, ``in_dims`` and ``max_bond``.
        out_dims: out dim of each site.
        in_dims: in dim of each site.
        max_bond: largest bond; ``None`` for lossless.
        cutoff: allowed relative Frobenius error of the whole chain, in ``[0, 1)``; can be combined with ``max_bond``.
        method: ``"auto"`` (the fastest whose error is within ``tolerance`` of exact SVDs), or one of ``"tt_svd"``
            (exact SVDs), ``"gram"`` (within 0.1 %) and ``"randomized"`` (fastest for small bonds).
        tolerance: for ``"auto"``, the largest relative excess of the error over that of exact SVDs; 0.01 allows the
            randomised algorithm if bonds are small.
        seed: seed of the randomised algorithm.
        name: name of the matrix in errors, such as the name of its layer.

    Returns:
        The chain, with an exact ``relative_error``.

    Raises:
        SpecError: dims that do not multiply to the shape, or an impossible bond or cutoff.
        ArgumentError: neither or both of spec and dims, an unknown method, or a tolerance or seed out of range.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> import numpy as np
        >>> W = np.random.default_rng(0).normal(size=(64, 32))
        >>> decompose(W, ChainSpec((8, 8), (4, 8), max_bond=16)).relative_error
        0.447...
        >>> decompose(W, out_dims=(8, 8), in_dims=(4, 8), cutoff=0.3).spec.bonds
        (22,)
    """
    namespace(matrix)
    spec = _resolved_spec(matrix, spec, out_dims, in_dims, max_bond)
    return MPOChain.from_matrix(matrix, spec, cutoff=cutoff, method=method, tolerance=tolerance, seed=seed, name=name)


def decompose_terms(
    matrix: Array,
    specs: Sequence[ChainSpec],
    *,
    rounds: int = 4,
    method: Algorithm = "auto",
    seed: int = 0,
    name: str = "matrix",
) -> tuple[MPOChain, ...]:
    """Decompose a matrix into a sum of chains with different dims.

    In each round, every term in turn is fitted to the residual of the others. The round with the smallest error is
    returned, so more rounds never give a worse sum.

    Args:
        matrix: ``(out_features, in_features)``.
        specs: one spec per term, all with the shape of the matrix.
        rounds: passes over the terms; the first is greedy.
        method: see :func:`decompose`.
        seed: see :func:`decompose`.
        name: name of the matrix in errors.

    Returns:
        One chain per spec. The ``relative_error`` of each is relative to the residual that it was fitted to, not to the
        matrix.

    Raises:
        ArgumentError: no spec, fewer than one round, or an unknown method.
        SpecError: dims that do not fit the matrix.

    Example:
        >>> import numpy as np
        >>> from mpochain import shapes
        >>> W = np.random.default_rng(0).normal(size=(16, 16))
        >>> terms = decompose_terms(W, [shapes.low_rank(16, 16, 2), ChainSpec((4, 4), (4, 4), max_bond=2)])
        >>> [term.spec.parameters for term in terms]
        [64, 64]
    """
    specs = (specs,) if isinstance(specs, ChainSpec) else tuple(specs)
    if not specs:
        raise ArgumentError("a sum of chains needs at least one spec")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError(f"rounds must be a positive integer, got {rounds!r}")
    terms: list[MPOChain | None] = [None] * len(specs)
    best: tuple[float, tuple[MPOChain, ...]] | None = None
    residual, exponent = in_range(promoted(detached(matrix), name))
    for _ in range(rounds if len(specs) > 1 else 1):
        for k, spec in enumerate(specs):
            old = terms[k]
            target = residual if old is None else residual + old.to_matrix()
            new = decompose(target, spec, method=method, seed=seed, name=name)
            terms[k] = new
            residual = target - new.to_matrix()
        error = norm(residual)
        if best is None or error < best[0]:
            best = error, tuple(term for term in terms if term is not None)
    assert best is not None
    return tuple(
        MPOChain(
            tuple(cast(core, matrix) for core in equalised(term.cores, 1.0, exponent)), term.spec, term.relative_error
        )
        for term in best[1]
    )
