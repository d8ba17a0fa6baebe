"""Fitting the rows of an embedding to those of a table, rare words less than frequent ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.factorization import decompose
from mpochain.nn.embeddings.entangled import EntangledEmbedding
from mpochain.nn.embeddings.rows import RowEmbedding
from mpochain.spec import ChainSpec

__all__ = ["Fit", "fit_rows"]

# Rows whose gradients are computed at once, and steps that the optimiser remembers.
_AT_ONCE, _HISTORY = 4096, 10

# A fit ends where a step changes the squared error by less than this share of that of leaving out everything.
_LEAST_CHANGE = 1e-9


@dataclass(frozen=True, eq=False)
class Fit:
    """How near the rows came.

    Attributes:
        errors: ``(num_embeddings,)`` relative error of each row; that of a row of zeros is 0 or infinite.
        error: relative error of all rows together, weighted by the frequencies of their words.
        evaluations: of the gradient.
    """

    errors: Tensor
    error: float
    evaluations: int


def fit_rows(
    embedding: RowEmbedding, table: Tensor, *, frequencies: Tensor | None = None, iterations: int = 200
) -> Fit:
    """Change the parameters of an embedding, in place, so that its rows come near those of a table.

    L-BFGS on all parameters minimises ``sum_w f_w ||v_w - t_w||^2``. It starts from the present parameters, except
    where a best fit is known: with two places of tables of their own, and units that are
    digits or each word's own, rows are those of a sum of Kronecker products or of matrices of low rank, which singular
    values give (Van Loan and Pitsianis 1993).

    Args:
        embedding: its parameters are the start, so draw them in the size of the table before:
            ``embedding.reset_parameters(table.std())``.
        table: ``(num_embeddings, embedding_dim)``, is left as it is.
        frequencies: ``(num_embeddings,)`` how often each word occurs; all alike if not given. A word of frequency 0 is
            not fitted at all.
        iterations: of L-BFGS at most; 0 for the start alone.

    Raises:
        ShapeError: a table or frequencies of other sizes.
        ArgumentError: frequencies that are negative, or all 0; or parameters that are all frozen.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> table = torch.randn(16, 9)
        >>> embedding = EntangledEmbedding(16, 9, order=2, ranks=12)  # as many as there can be
        >>> fit_rows(embedding, table).error < 1e-5
        True
    """
    weights = _weights(embedding, table, frequencies)
    target = table.detach().to(next(embedding.parameters()).dtype)
    power = float((weights[:, None] * target.square()).sum()) or 1.0
    parameters = [parameter for parameter in embedding.parameters() if parameter.requires_grad]
    if not parameters:
        raise ArgumentError("all parameters of the embedding are frozen; requires_grad_() those that may change")
    with torch.no_grad():
        _start(embedding, target)
    evaluations = 0

    def loss() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        for parameter in parameters:
            parameter.grad = None
        total = torch.zeros((), dtype=target.dtype, device=target.device)
        for rows in torch.arange(len(target), device=target.device).split(_AT_ONCE):
            rest = (embedding.rows(rows) - target[rows]).square().sum(1)
            part = (rest * weights[rows]).sum() / power
            part.backward()
            total += part.detach()
        return total

    if iterations:
        before = [parameter.grad for parameter in parameters]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=_HISTORY,
            tolerance_grad=0.0,
            tolerance_change=_LEAST_CHANGE,
            line_search_fn="strong_wolfe",
        )
        with torch.enable_grad():
            optimizer.step(loss)
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
    with torch.no_grad():
        rest = (embedding.weight - target).square().sum(1)
        sizes = target.square().sum(1)
        errors = torch.where(rest > 0, (rest / sizes).sqrt(), 0.0)
    return Fit(errors, math.sqrt(float((rest * weights).sum()) / power), evaluations)


def _weights(embedding: RowEmbedding, table: Tensor, frequencies: Tensor | None) -> Tensor:
    sizes = embedding.num_embeddings, embedding.embedding_dim
    if tuple(table.shape) != sizes:
        raise ShapeError(f"the table has shape {tuple(table.shape)}; expected {sizes}")
    if not table.isfinite().all():
        raise NonFiniteError("the table has NaN or infinite entries, which nothing can be fitted to")
    like = next(embedding.parameters())
    if frequencies is None:
        return torch.ones(len(table), dtype=like.dtype, device=like.device)
    if tuple(frequencies.shape) != sizes[:1]:
        raise ShapeError(f"the frequencies have shape {tuple(frequencies.shape)}; expected {sizes[:1]}")
    if not frequencies.isfinite().all() or bool((frequencies < 0).any()) or not frequencies.any():
        raise ArgumentError("frequencies are finite, none negative and not all 0")
    return (frequencies.double() / frequencies.double().mean()).to(like)


def _start(embedding: RowEmbedding, table: Tensor) -> None:
    """The best fit without frequencies, where singular values give it."""
    if not isinstance(embedding, EntangledEmbedding) or embedding.order != 2 or embedding.shared:
        return
    if embedding.source == "index" or embedding.coefficients is not None or embedding.scale is not None:
        return
    (left, right), ranks = embedding.dims, embedding.ranks
    first, second = embedding.tables
    if not (first.requires_grad and second.requires_grad):
        return
    first.zero_()
    second.zero_()
    if embedding.source == "own":
        padded = torch.nn.functional.pad(table, (0, left * right - table.shape[1]))
        for rows in torch.arange(len(table), device=table.device).split(_AT_ONCE):
            U, S, Vh = torch.linalg.svd(padded[rows].view(-1, left, right).double(), full_matrices=False)
            kept = min(ranks, S.shape[1])
            sizes = S[:, :kept, None].sqrt()
            first.view(-1, ranks, left)[rows, :kept] = (U.transpose(1, 2)[:, :kept] * sizes).to(table)
            second.view(-1, ranks, right)[rows, :kept] = (Vh[:, :kept] * sizes).to(table)
        return
    count = embedding.unit_count
    spec = ChainSpec((count, count), (left, right), ranks, out_features=table.shape[0], in_features=table.shape[1])
    chain = decompose(table, spec)
    kept = chain.spec.bonds[0]
    # (1, t, q, r) and (r, t, q, 1) to (t, r, q).
    first.view(count, ranks, left)[:, :kept] = chain.cores[0][0].permute(0, 2, 1)
    second.view(count, ranks, right)[:, :kept] = chain.cores[1][..., 0].permute(1, 0, 2)
