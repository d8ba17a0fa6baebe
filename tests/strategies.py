"""Hypothesis strategies for specs and matrices, drawn broadly: prime and unit dims, one to five sites, any bond."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from mpochain import ChainSpec

DIMS = st.sampled_from([1, 1, 2, 2, 3, 4, 5, 7])
SEEDS = st.integers(0, 2**16)


@st.composite
def specs(draw, max_sites=5, min_sites=1, full=False, padding=True, max_entries=20_000):
    sites = draw(st.integers(min_sites, max_sites))
    dims = st.lists(DIMS, min_size=sites, max_size=sites)
    out_dims, in_dims = draw(
        st.tuples(dims, dims).filter(lambda pair: math.prod(pair[0]) * math.prod(pair[1]) <= max_entries)
    )
    bonds = None if full else draw(st.lists(st.integers(1, 30), min_size=sites - 1, max_size=sites - 1))
    features = {}
    if padding and draw(st.booleans()):
        features = {
            "out_features": draw(st.integers(1, math.prod(out_dims))),
            "in_features": draw(st.integers(1, math.prod(in_dims))),
        }
    return ChainSpec(out_dims, in_dims, bonds=bonds, **features)


def matrix(spec, seed, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=spec.shape).astype(dtype)


def cores(spec, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in spec.core_shapes]
