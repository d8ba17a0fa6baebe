"""Search for the order of rows and columns in which a matrix is closest to a sum of Kronecker products.

The form is from TQCompressor, arXiv 2401.16367, whose search is not public; this search was developed here. Rows that
share a row of every ``A_r`` form a group, and columns likewise. For a fixed order the best sum has a closed form. A
step of the search improves the columns by four moves, and the rows by the same moves on the transposed matrix:

- Within a group, every order is tried for the current span of the ``B_r``, with the ``A_r`` refitted for each order.
- A column moves to the slot for which the *other* columns of the group predict it best; the fit to a wrong order would
  confirm that order. Blocks are assumed to be normally distributed, with the moments of the sum and the residual as
  noise. The likelihoods of all columns in all slots are the scores of a linear assignment (Kuhn 1955).
- Groups exchange halves, by the predictions from their other halves. Single columns cannot correct two groups that hold
  each other's halves, since each column agrees with the rest of its half.
- Finally, columns move to the slots of the sum that they are closest to, which cannot raise the error.

The search starts from groups of correlated rows and columns, and from the given order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpochain.arrays import Array, asarray, cast, detached, promoted, require_finite, require_matrix, to_numpy
from mpochain.decomposition.grouping import correlated_groups
from mpochain.decomposition.kronecker import KroneckerBlocks
from mpochain.decomposition.reordering import Noise, assigned, halved, mixed, ordered_within, predicted
from mpochain.errors import ArgumentError, SpecError
from mpochain.linalg import named
from mpochain.spec import ChainSpec

__all__ = ["PermutedKronecker", "permuted_kronecker"]

_Order = NDArray[np.int64]

# A phase of the search ends once a step reduces the error by less than this share.
_LEAST_GAIN = 1e-4

# Number of steps without such a reduction after which moves of groups end; not every one of these steps reduces the
# error.
_PATIENCE = 8


@dataclass(frozen=True, eq=False)
class PermutedKronecker:
    """A sum of Kronecker products that approximates a matrix with its rows and columns reordered.

    Attributes:
        rows: order of the rows; the sum approximates ``matrix[rows][:, columns]``.
        columns: order of the columns.
        cores: ``(1, m_1, n_1, R)`` and ``(R, m_2, n_2, 1)``.
        errors: relative error in the given order, then in the best order so far after each step; never increases.
    """

    rows: _Order
    columns: _Order
    cores: tuple[Array, Array]
    errors: tuple[float, ...]

    @property
    def relative_error(self) -> float:
        """Relative error in the Frobenius norm."""
        return self.errors[-1]


def permuted_kronecker(
    matrix: Array,
    spec: ChainSpec,
    *,
    steps: int = 40,
    restarts: int = 0,
    temperature: float = 0.0,
    seconds: float | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda *_: None,
    name: str = "matrix",
) -> PermutedKronecker:
    """Search for an order of rows and columns, and fit the sum of Kronecker products for it.

    Never worse than the best sum in the given order. The result is deterministic unless the time runs out.

    Args:
        matrix: ``W (out, in)``, any float type; the search is in float64 of NumPy.
        spec: two sites ``(m_1, m_2) | (n_1, n_2)``; its bond is the number of terms.
        steps: largest number of steps from each start.
        restarts: number of additional, random starts.
        temperature: annealing temperature: standard deviation of the noise added to assignment scores, relative to that
            of the scores; it falls to 0 over the steps.
        seconds: time limit, after which the best result so far is returned; None for no limit.
        seed: seed of random starts and noise.
        progress: called with the number of completed steps and the smallest relative error.
        name: name of the matrix in errors.

    Raises:
        SpecError: not two sites, padded dims, or dims that do not fit the matrix.
        ArgumentError: steps, restarts, temperature or seconds out of range.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> spec = ChainSpec((16, 2), (24, 2), max_bond=1)
        >>> product = np.kron(rng.normal(size=(16, 24)), rng.normal(size=(2, 2)))
        >>> shuffled = product[rng.permutation(32)][:, rng.permutation(48)]
        >>> result = permuted_kronecker(shuffled, spec)
        >>> round(result.errors[0], 1), result.relative_error < 1e-6
        (0.8, True)
    """
    if spec.sites != 2 or spec.shape != spec.padded_shape:
        raise SpecError(f"a sum of Kronecker products has two sites and no padding, got {spec}; choose such a spec")
    for value, least, argument in ((steps, 1, "steps"), (restarts, 0, "restarts")):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{argument} must be an integer of at least {least}, got {value!r}")
    if not 0.0 <= temperature < math.inf:
        raise ArgumentError(f"temperature must be a finite number of at least 0, got {temperature!r}")
    if seconds is not None and not seconds > 0:
        raise ArgumentError(f"seconds must be positive, or None for no limit, got {seconds!r}")
    require_matrix(matrix, name)
    if tuple(matrix.shape) != spec.shape:
        raise SpecError(f"{name} is {tuple(matrix.shape)}, but the spec is for {spec.shape}: {spec}")
    weight64 = cast(promoted(detached(matrix), name), "float64")
    require_finite(weight64, name)
    problem = KroneckerBlocks(np.ascontiguousarray(to_numpy(weight64)), spec)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    search = _Search(problem, np.random.default_rng(seed), steps, temperature, deadline, progress)
    with named(name):
        return _searched(search, problem, spec, weight64, restarts)


def _searched(
    search: _Search, problem: KroneckerBlocks, spec: ChainSpec, weight64: Array, restarts: int
) -> PermutedKronecker:
    """The best order from all starts, and its factors."""
    identity = np.arange(spec.shape[0]), np.arange(spec.shape[1])
    search.evaluate(*identity)
    if not problem.is_zero:
        # First, since this start is usually closest to the optimum.
        search.run(*correlated_groups(problem.matrix, spec))
    search.run(*identity)
    for _ in range(restarts):
        # The order of groups of one member does not matter.
        rows, columns = (
            order if dims[1] == 1 else search.random.permutation(order)
            for order, dims in zip(identity, (spec.out_dims, spec.in_dims), strict=True)
        )
        search.run(rows, columns)
    rows, columns = search.best
    A, B = problem.factors(rows, columns)
    return PermutedKronecker(rows, columns, (asarray(A, weight64), asarray(B, weight64)), tuple(search.errors))


class _Search:
    """Search from several starts, which keeps the best order."""

    def __init__(
        self,
        problem: KroneckerBlocks,
        random: np.random.Generator,
        steps: int,
        temperature: float,
        deadline: float,
        progress: Callable[[int, float], None],
    ) -> None:
        self.random = random
        self.errors: list[float] = []
        self.best: tuple[_Order, _Order] = (np.empty(0, np.int64), np.empty(0, np.int64))
        self._problem, self._transposed = problem, problem.transposed()
        self._steps, self._temperature, self._deadline, self._progress = steps, temperature, deadline, progress

    def run(self, rows: _Order, columns: _Order) -> None:
        """All steps from one start: moves of groups first, then of single rows and columns."""
        if self.errors and self._finished(self.errors[-1]):
            return
        error = least = self.evaluate(rows, columns)
        best, idle = (rows, columns), 0
        for step in range(self._steps):
            if self._finished(least) or idle >= _PATIENCE:
                break
            noise = self._noise(step)
            rows, columns = self._ordered(rows, columns)
            columns = predicted(self._problem, rows, columns, noise)
            rows = predicted(self._transposed, columns, rows, noise)
            columns = halved(self._problem, rows, columns, noise)
            rows = halved(self._transposed, columns, rows, noise)
            rows, columns = self._ordered(rows, columns)
            error = self.evaluate(rows, columns)
            idle = idle + 1 if error > least * (1 - _LEAST_GAIN) else 0
            if error < least:
                least, best = error, (rows, columns)
            if idle > 1:
                rows, columns = best
                if idle % 2:
                    columns = mixed(self._problem, rows, columns, self.random)
                else:
                    rows = mixed(self._transposed, columns, rows, self.random)
        rows, columns = best
        for step in range(self._steps):
            if self._finished(least):
                return
            noise = self._noise(step)
            rows = assigned(self._transposed, columns, rows, noise)
            columns = assigned(self._problem, rows, columns, noise)
            error = self.evaluate(rows, columns)
            if error > least * (1 - _LEAST_GAIN) and not noise.share:
                return
            least = min(error, least)

    def _finished(self, error: float) -> bool:
        return time.monotonic() > self._deadline or error < 1e-12

    def _noise(self, step: int) -> Noise:
        return Noise(self.random, self._temperature * (1 - (step + 1) / self._steps))

    def evaluate(self, rows: _Order, columns: _Order) -> float:
        """Compute the error of an order, and keep the order if it is the best so far."""
        blocks = self._problem.blocks(rows, columns)
        error = self._problem.error(blocks, self._problem.span(blocks))
        if not self.errors or error < self.errors[-1]:
            self.best = rows, columns
        self.errors.append(min(error, self.errors[-1]) if self.errors else error)
        self._progress(len(self.errors) - 1, self.errors[-1])
        return error

    def _ordered(self, rows: _Order, columns: _Order) -> tuple[_Order, _Order]:
        """Order columns and rows within their groups in turn, until the error no longer falls notably."""
        last = math.inf
        for _ in range(self._steps):
            columns = ordered_within(self._problem, rows, columns)
            rows = ordered_within(self._transposed, columns, rows)
            blocks = self._problem.blocks(rows, columns)
            error = self._problem.error(blocks, self._problem.span(blocks))
            if error > last * (1 - _LEAST_GAIN):
                break
            last = error
        return rows, columns
