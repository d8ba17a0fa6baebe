"""Fit of a compressed embedding to a dense table, weighted by word frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpochain.arrays import in_range, times_power_of_two
from mpochain.errors import ArgumentError, NonFiniteError, ShapeError
from mpochain.factorization import decompose
from mpochain.linalg import svd
from mpochain.nn.embeddings.entangled import EntangledEmbedding
from mpochain.nn.embeddings.mpo import MPOEmbedding
from mpochain.nn.embeddings.rows import RowEmbedding
from mpochain.nn.embeddings.token_train import TokenTrainEmbedding
from mpochain.spec import ChainSpec

__all__ = ["Fit", "fit_rows"]

# Number of rows whose gradients are computed at once, and history length of L-BFGS.
_AT_ONCE, _HISTORY = 4096, 10

# The fit stops once a step changes the squared error by less than this share of the table's squared norm.
_LEAST_CHANGE = 1e-9


@dataclass(frozen=True, eq=False)
class Fit:
    """Remaining errors of a fit.

    Attributes:
        errors: ``(num_embeddings,)`` relative error of each row; for a row of zeros, 0 or infinite.
        error: relative error of all rows together, weighted by the word frequencies.
        evaluations: number of gradient evaluations.
    """

    errors: Tensor
    error: float
    evaluations: int


def fit_rows(
    embedding: RowEmbedding, table: Tensor, *, frequencies: Tensor | None = None, iterations: int = 200
) -> Fit:
    """Fit the parameters of an embedding, in place, to the rows of a table.

    L-BFGS on all parameters minimises ``sum_w f_w ||v_w - t_w||^2``. It starts from the current parameters, except
    where an SVD gives the best unweighted fit: an entangled embedding of order 2 with a table per place and units
    ``"digits"`` (a sum of Kronecker products, Van Loan and Pitsianis 1993) or ``"own"`` (a low-rank matrix per row).

    Args:
        embedding: the start of the fit. Draw its parameters in the scale of the table first:
            ``embedding.reset_parameters(table.std())``.
        table: ``(num_embeddings, embedding_dim)``; not changed.
        frequencies: ``(num_embeddings,)`` frequency of each word; all equal if not given. A word of frequency 0 is not
            fitted at all.
        iterations: largest number of L-BFGS iterations; 0 for the start alone.

    Raises:
        ShapeError: a table or frequencies of another shape.
        ArgumentError: negative or non-finite frequencies, all frequencies 0, or only frozen parameters.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> table = torch.randn(16, 9)
        >>> embedding = EntangledEmbedding(16, 9, order=2, ranks=12)  # full rank
        >>> fit_rows(embedding, table).error < 1e-5
        True
    """
    weights = _weights(embedding, table, frequencies)
    target = table.detach().to(next(embedding.parameters()).dtype)
    unit, exponent = in_range(target)
    if exponent and _multiply(embedding, -exponent):
        # In a scale in which no square leaves its element type, and steps are not too small to count.
        fit = fit_rows(embedding, unit, frequencies=frequencies, iterations=iterations)
        _multiply(embedding, exponent)
        return fit
    power = float((weights[:, None] * target.square()).sum()) or 1.0
    parameters = [parameter for parameter in embedding.parameters() if parameter.requires_grad]
    if not parameters:
        raise ArgumentError("all parameters of the embedding are frozen; call requires_grad_() on those to fit")
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
        raise NonFiniteError("the table has NaN or infinite entries; replace them before the fit")
    like = next(embedding.parameters())
    if frequencies is None:
        return torch.ones(len(table), dtype=like.dtype, device=like.device)
    if tuple(frequencies.shape) != sizes[:1]:
        raise ShapeError(f"the frequencies have shape {tuple(frequencies.shape)}; expected {sizes[:1]}")
    if not frequencies.isfinite().all() or bool((frequencies < 0).any()) or not frequencies.any():
        raise ArgumentError("frequencies must be finite, non-negative and not all 0")
    return (frequencies.double() / frequencies.double().mean()).to(like)


@torch.no_grad()
def _multiply(embedding: RowEmbedding, exponent: int) -> bool:
    """Multiply the rows of an embedding by a power of two, shared by its parameters; False if that is impossible."""
    terms: list[list[Tensor]] = []
    if isinstance(embedding, EntangledEmbedding):
        if embedding.scale is not None and embedding.shift is not None:
            for parameter in (embedding.scale, embedding.shift):
                parameter.copy_(times_power_of_two(parameter, exponent))
            return True
        if embedding.shared:
            embedding.tables[0].mul_(2.0 ** (exponent / embedding.order))
            return True
        terms = [embedding.tables]
    elif isinstance(embedding, TokenTrainEmbedding):
        terms = [embedding.cores]
    elif isinstance(embedding, MPOEmbedding):
        terms = [list(cores) for cores in embedding.cores]
    for factors in terms:
        for site, parameter in enumerate(factors):
            parameter.copy_(times_power_of_two(parameter, (exponent + site) // len(factors)))
    return bool(terms)


def _start(embedding: RowEmbedding, table: Tensor) -> None:
    """Set the parameters to the best unweighted fit, where an SVD gives it."""
    if not isinstance(embedding, EntangledEmbedding) or embedding.order != 2 or embedding.shared:
        return
    if embedding.source == "index" or embedding.coefficients is not None or embedding.scale is not None:
        return
    (left, right), ranks = embedding.dims, embedding.ranks
    first, second = embedding.tables
    if not (first.requires_grad and second.requires_grad):
        return
    # The first table keeps its random numbers where the second is zero, so that terms beyond the rank can be trained.
    second.zero_()
    if embedding.source == "own":
        padded = torch.nn.functional.pad(table, (0, left * right - table.shape[1]))
        for rows in torch.arange(len(table), device=table.device).split(_AT_ONCE):
            U, S, Vh = svd(padded[rows].view(-1, left, right).double())
            kept = min(ranks, S.shape[1])
            sizes = S[:, :kept, None].sqrt()
            # Where the second table is zero, the first keeps its random numbers, so that training can start.
            used = sizes[..., 0] > 0
            units = (U.transpose(1, 2)[:, :kept] * sizes).to(table)
            drawn = first.view(-1, ranks, left)[rows, :kept]
            first.view(-1, ranks, left)[rows, :kept] = torch.where(used[..., None], units, drawn)
            second.view(-1, ranks, right)[rows, :kept] = (Vh[:, :kept] * sizes).to(table)
        return
    count = embedding.unit_count
    spec = ChainSpec((count, count), (left, right), ranks, out_features=table.shape[0], in_features=table.shape[1])
    chain = decompose(table, spec)
    kept = chain.spec.bonds[0]
    # (1, t, q, r) and (r, t, q, 1) to (t, r, q).
    first.view(count, ranks, left)[:, :kept] = chain.cores[0][0].permute(0, 2, 1)
    second.view(count, ranks, right)[:, :kept] = chain.cores[1][..., 0].permute(1, 0, 2)
