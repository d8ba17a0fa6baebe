"""Forward passes and training steps: the chain beside the dense layer, low rank at equal parameters, and every peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import results
import torch
from grid import CELLS
from implementations import implementations
from interleave import interleave
from torch import Tensor, nn

# A sweep in one fixed order needs states of this many elements; beyond it a peer may not fit into memory.
_LARGEST_STATE = 1 << 28


def _rotating(batch: int, features: int, requires_grad: bool = False) -> list[Tensor]:
    """Several inputs, so that a cell does not run from cache alone."""
    count = max(2, min(8, (1 << 26) // (batch * features)))
    return [torch.randn(batch, features, requires_grad=requires_grad) for _ in range(count)]


def _largest_state(spec, batch: int) -> int:
    state = batch * spec.in_features
    rows = state
    for left, out, in_, right in reversed(spec.core_shapes):
        rows = rows // (in_ * right) * left * out
        state = max(state, rows)
    return state


def _measure(benchmark, group: str, cell, functions: dict[str, Callable[[int], object]], missing: dict[str, str]):
    enabled = benchmark.enabled
    if enabled and cell.name in results.load(group):
        pytest.skip("finished in an earlier run")
    timings = interleave(functions) if enabled else interleave(functions, rounds=1, round_seconds=0.0)
    benchmark.extra_info.update(cell=cell.name, timings=timings, missing=missing)
    benchmark.group = f"{group}: {cell.name}"
    benchmark.pedantic(functions["compact"], args=(0,), rounds=3 if enabled else 1)
    if enabled:
        record = {"cell": cell.name, "spec": cell.spec.as_dict(), "batch": cell.batch}
        results.add(group, {**record, "timings": timings, "missing": missing})


def _rejected(made, spec, batch: int, missing: dict[str, str]) -> None:
    if _largest_state(spec, batch) > _LARGEST_STATE:
        for name in [name for name in made if name not in ("dense", "low rank", "compact", "fast")]:
            missing[name] = f"an intermediate state of over {_LARGEST_STATE:,} elements"
            del made[name]


@pytest.mark.parametrize("cell", CELLS)
def bench_forward(benchmark, cell):
    torch.manual_seed(0)
    made, missing = implementations(cell.spec)
    _rejected(made, cell.spec, cell.batch, missing)
    inputs = _rotating(cell.batch, cell.spec.in_features)
    with torch.no_grad():
        expected = made["compact"](inputs[0])
        for name in list(made):
            if name in ("dense", "low rank"):
                continue
            try:
                deviation = float((made[name](inputs[0]) - expected).norm() / expected.norm())
            except Exception as error:
                missing[name] = f"{type(error).__name__}: {error}"[:200]
                del made[name]
                continue
            # Peers decompose on their own; the chain is the same where its singular values are well apart.
            assert deviation < 1e-3 or name not in ("fast", "opt_einsum", "cotengra", "quimb"), (name, deviation)
        functions = {name: (lambda k, run=run: run(inputs[k % len(inputs)])) for name, run in made.items()}
        _measure(benchmark, "forward", cell, functions, missing)


@pytest.mark.parametrize("cell", CELLS)
def bench_training(benchmark, cell):
    """Forward and backward, to the input and to all parameters."""
    torch.manual_seed(0)
    made, missing = implementations(cell.spec)
    _rejected(made, cell.spec, 4 * cell.batch, missing)
    inputs = _rotating(cell.batch, cell.spec.in_features, requires_grad=True)
    grad = torch.randn(cell.batch, cell.spec.out_features)
    layers = {
        name: made[name]
        for name in ("compact", "tltorch factorized", "tltorch reconstructed", "torch-mpo")
        if name in made
    }
    linear = nn.Linear(cell.spec.in_features, cell.spec.out_features, bias=False)
    chain = layers["compact"]
    layers = {"dense": linear, **layers, "rebuild": _Rebuild(chain), "plain chain": _PlainChain(chain)}

    def step(layer):
        parameters = list(layer.parameters())

        def run(k):
            x = inputs[k % len(inputs)]
            x.grad = None
            for parameter in parameters:
                parameter.grad = None
            layer(x).backward(grad)

        return run

    functions = {name: step(layer) for name, layer in layers.items()}
    _measure(benchmark, "training", cell, functions, missing)


class _Rebuild(nn.Module):
    """The dense weight by autograd, then one product: what most libraries do."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return nn.functional.linear(x, self.chain.weight)


class _PlainChain(nn.Module):
    """The cores one after another by autograd, untiled."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        from mpochain import MPOChain

        return MPOChain(self.chain.cores[0], self.chain.spec) @ x
