"""Benchmark of decompositions: time and error of this library's three algorithms and of TensorLy."""

from __future__ import annotations

from importlib.util import find_spec

import grid
import pytest
import results
import torch
from cells import skip_if_finished, warm_up
from interleave import interleave

import mpochain as mpo
from mpochain import MPOChain

_CASES = {
    "tiny": [((32, 16), "2 sites", 2)],
    "small": [((768, 768), "2 sites", 16), ((3072, 768), "3 sites", 32)],
    "full": [((3072, 3072), "2 sites", 64), ((768, 768), "2 sites", 16), ((3072, 768), "3 sites", 32)],
}
_EXACT = "tt_svd"


def _tensorly(weight, spec) -> MPOChain:
    import tensorly
    from tensorly.decomposition import tensor_train_matrix

    with tensorly.backend_context("pytorch"):
        factors = tensor_train_matrix(weight.reshape(*spec.out_dims, *spec.in_dims), (1, *spec.bonds, 1)).factors
    return MPOChain(factors, spec)


@pytest.mark.parametrize(("shape", "kind", "bond"), _CASES[grid.NAME])
def bench_decomposition(benchmark, shape, kind, bond):
    spec = grid.spec_of(kind, *shape, bond)
    name = f"{shape[0]}x{shape[1]} {kind} χ={bond}"
    skip_if_finished(benchmark, "decomposition", name)
    weight = torch.randn(shape)
    methods = ("tt_svd", "gram", "randomized")
    functions = {
        method: (lambda k, method=method: mpo.decompose(weight, spec, method=method, seed=k)) for method in methods
    }
    missing = {}
    if find_spec("tensorly") is None:
        missing["TensorLy"] = "tensorly is not installed"
    else:
        functions["TensorLy"] = lambda k: _tensorly(weight, spec)
    errors = {}

    def check(method, chain):
        errors[method] = float((weight - chain.to_matrix()).norm() / weight.norm())

    warm_up(functions, (), 1, check)
    timings = interleave(functions, rounds=3 if benchmark.enabled else 1)
    deviation = {method: error / errors[_EXACT] - 1 for method, error in errors.items()}
    benchmark.group = f"decomposition: {name}"
    benchmark.extra_info.update(timings=timings, errors=errors)
    benchmark.pedantic(functions["gram"], args=(0,), rounds=1)
    if benchmark.enabled:
        record = {"cell": name, "timings": timings, "errors": errors, "above_exact": deviation, "missing": missing}
        results.add("decomposition", record)
