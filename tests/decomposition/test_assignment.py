"""Optimal and greedy assignments: every item once, with the stated score."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpochain.decomposition.assignment import best_assignment, greedy_assignment

sizes, seeds = st.integers(1, 6), st.integers(0, 2**16)


def total(scores, order):
    assert sorted(order) == list(range(len(scores)))
    return scores[order, np.arange(len(scores))].sum()


@given(sizes, seeds, st.booleans())
def test_optimal_sum_and_half_of_it_for_greedy(size, seed, tied):
    random = np.random.default_rng(seed)
    scores = random.integers(3, size=(size, size)).astype(float) if tied else random.random((size, size))
    optimum = max(total(scores, np.array(order)) for order in itertools.permutations(range(size)))
    assert abs(total(scores, best_assignment(scores)) - optimum) < 1e-9
    assert total(scores, greedy_assignment(scores)) >= optimum / 2 - 1e-9


@given(st.integers(1, 40), seeds)
def test_both_find_a_clear_assignment(size, seed):
    random = np.random.default_rng(seed)
    order = random.permutation(size)
    scores = 0.1 * random.random((size, size))
    scores[order, np.arange(size)] += 1
    assert (greedy_assignment(scores) == order).all()
    assert (best_assignment(scores) == order).all()
