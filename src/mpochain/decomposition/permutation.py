"""The order of rows and columns in which a matrix is closest to a sum of Kronecker products.

Source of the form: TQCompressor, arXiv 2401.16367; its search is not public. This one is ours. Rows that share a row of
every ``A_r`` are called a group, and so columns. The best sum for an order is in closed form; then

- within a group, every order is tried under the span of the ``B_r``, with the ``A_r`` fitted anew for each;
- a column goes to the place for which the *other* columns of the group predict it best, so that a wrong order which the
  sum has been fitted to has no say. Blocks are taken to be normal, with the moments of the sum and what it leaves out
  as noise, and the likelihoods of all columns in all places are a linear assignment (Kuhn 1955);
- groups exchange halves by what the other halves predict, since two that hold each other's are at odds in no column;
- at last columns go to the places of the sum that they are closest to, which cannot raise the error;

and all of it for the rows in turn. Starts are groups of correlated rows and columns, and the given order.
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
from mpochain.errors import SpecError
from mpochain.spec import ChainSpec

__all__ = ["PermutedKronecker", "permuted_kronecker"]

_Order = NDArray[np.int64]

# A step of which the squared error falls by less than this share of itself is the last of its kind.
_LEAST_GAIN = 1e-4

# Steps of groups that bring nothing new before they end: they do not fall every time.
_PATIENCE = 8


@dataclass(frozen=True, eq=False)
class PermutedKronecker:
    """An order, and the two cores of the sum for it.

    Attributes:
        rows: ``matrix[rows][:, columns]`` is what the sum stands for.
        columns: see ``rows``.
        cores: ``(1, m_1, n_1, R)`` and ``(R, m_2, n_2, 1)``.
        errors: relative error of the given order, then of the best order so far after each step; never increases.
    """

    rows: _Order
    columns: _Order
    cores: tuple[Array, Array]
    errors: tuple[float, ...]

    @property
    def relative_error(self) -> float:
        """Frobenius norm of what the sum leaves out over that of the matrix."""
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

    Never worse than the best sum in the given order. The result depends on nothing but the arguments, unless the time
    runs out.

    Args:
        matrix: ``W (out, in)``, any float type; the search is in float64 of NumPy.
        spec: two sites ``(m_1, m_2) | (n_1, n_2)``; its bond is the number of terms.
        steps: the most from each start.
        restarts: random orders to start from too.
        temperature: of annealing: scores of assignments get noise of so much of their own deviation, which falls to
            nothing over the steps.
        seconds: when to stop, with the best so far; None for no limit.
        seed: of random starts and noise.
        progress: told the number of steps made and the smallest relative error.
        name: what to call the matrix in errors.

    Raises:
        SpecError: not two sites, padded dims, dims that do not fit the matrix, or numbers out of range.
        DTypeError: elements that are not floats.
        NonFiniteError: NaN or infinite entries.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> spec = ChainSpec((16, 2), (24, 2), max_bond=1)
        >>> product = np.kron(rng.normal(size=(16, 24)), rng.normal(size=(2, 2)))
        >>> shuffled = product[rng.permutation(32)][:, rng.permutation(48)]
        >>> found = permuted_kronecker(shuffled, spec)
        >>> round(found.errors[0], 1), found.relative_error < 1e-6
        (0.8, True)
    """
    if spec.sites != 2 or spec.shape != spec.padded_shape:
        raise SpecError(f"a sum of Kronecker products has two sites and no padding, got {spec}")
    for value, least, what in ((steps, 1, "steps"), (restarts, 0, "restarts")):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SpecError(f"{what} must be an integer of at least {least}, got {value!r}")
    if not 0.0 <= temperature < math.inf:
        raise SpecError(f"temperature must be a finite number of at least 0, got {temperature!r}")
    if seconds is not None and not seconds > 0:
        raise SpecError(f"seconds must be positive, or None for no limit, got {seconds!r}")
    require_matrix(matrix, name)
    if tuple(matrix.shape) != spec.shape:
        raise SpecError(f"{name} is {tuple(matrix.shape)}, and the spec is of {spec.shape}: {spec}")
    wide = cast(promoted(detached(matrix), name), "float64")
    require_finite(wide, name)
    problem = KroneckerBlocks(np.ascontiguousarray(to_numpy(wide)), spec)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    search = _Search(problem, np.random.default_rng(seed), steps, temperature, deadline, progress)
    given = np.arange(spec.shape[0]), np.arange(spec.shape[1])
    search.look(*given)
    if problem.scale:
        # First, since it comes nearest to what there is to be found.
        search.run(*correlated_groups(problem.matrix, spec))
    search.run(*given)
    for _ in range(restarts):
        # Where a group has one member their order says nothing.
        rows, columns = (
            order if dims[1] == 1 else search.random.permutation(order)
            for order, dims in zip(given, (spec.out_dims, spec.in_dims), strict=True)
        )
        search.run(rows, columns)
    rows, columns = search.best
    A, B = problem.factors(rows, columns)
    return PermutedKronecker(rows, columns, (asarray(A, wide), asarray(B, wide)), tuple(search.errors))


class _Search:
    """Steps from several starts; the best order of all of them is kept."""

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
        self._problem, self._turned = problem, problem.transposed()
        self._steps, self._temperature, self._deadline, self._progress = steps, temperature, deadline, progress

    def run(self, rows: _Order, columns: _Order) -> None:
        """All steps from one start: groups first, then single rows and columns."""
        if self.errors and self._over(self.errors[-1]):
            return
        error = least = self.look(rows, columns)
        best, idle = (rows, columns), 0
        for step in range(self._steps):
            if self._over(least) or idle >= _PATIENCE:
                break
            noise = self._noise(step)
            rows, columns = self._ordered(rows, columns)
            columns = predicted(self._problem, rows, columns, noise)
            rows = predicted(self._turned, columns, rows, noise)
            columns = halved(self._problem, rows, columns, noise)
            rows = halved(self._turned, columns, rows, noise)
            rows, columns = self._ordered(rows, columns)
            error = self.look(rows, columns)
            idle = idle + 1 if error > least * (1 - _LEAST_GAIN) else 0
            if error < least:
                least, best = error, (rows, columns)
            if idle > 1:
                rows, columns = best
                if idle % 2:
                    columns = mixed(self._problem, rows, columns, self.random)
                else:
                    rows = mixed(self._turned, columns, rows, self.random)
        rows, columns = best
        for step in range(self._steps):
            if self._over(least):
                return
            noise = self._noise(step)
            rows = assigned(self._turned, columns, rows, noise)
            columns = assigned(self._problem, rows, columns, noise)
            error = self.look(rows, columns)
            if error > least * (1 - _LEAST_GAIN) and not noise.share:
                return
            least = min(error, least)

    def _over(self, error: float) -> bool:
        return time.monotonic() > self._deadline or error < 1e-12

    def _noise(self, step: int) -> Noise:
        return Noise(self.random, self._temperature * (1 - (step + 1) / self._steps))

    def look(self, rows: _Order, columns: _Order) -> float:
        """The error of an order, which is kept if no other was better."""
        blocks = self._problem.blocks(rows, columns)
        error = self._problem.error(blocks, self._problem.span(blocks))
        if not self.errors or error < self.errors[-1]:
            self.best = rows, columns
        self.errors.append(min(error, self.errors[-1]) if self.errors else error)
        self._progress(len(self.errors) - 1, self.errors[-1])
        return error

    def _ordered(self, rows: _Order, columns: _Order) -> tuple[_Order, _Order]:
        """The best order within each group, for columns and rows in turn, until little changes."""
        last = math.inf
        for _ in range(self._steps):
            columns = ordered_within(self._problem, rows, columns)
            rows = ordered_within(self._turned, columns, rows)
            blocks = self._problem.blocks(rows, columns)
            error = self._problem.error(blocks, self._problem.span(blocks))
            if error > last * (1 - _LEAST_GAIN):
                break
            last = error
        return rows, columns
