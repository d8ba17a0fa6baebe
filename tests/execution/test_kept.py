"""Matrices kept between calls without gradients: every call is the product with the present dense matrix."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from mpochain import ChainSpec, MPOLinear, shapes

SPECS = {
    "two sites": ChainSpec((8, 16), (8, 16), 4),
    "rebuilt when fast": ChainSpec((8, 16), (8, 16), 64),
    "three sites": ChainSpec((4, 4, 8), (4, 4, 8), 4),
    "skewed": shapes.skewed(128, 128, 4, 8),
    "low rank": shapes.low_rank(128, 128, 3),
    "padded": ChainSpec((8, 16), (8, 16), 4, out_features=127, in_features=125),
}
LEADS = {"row": (1,), "rows": (6,), "vector": (), "axes": (2, 1, 3), "none": (0,), "many": (300,)}


def layer_of(spec, memory, bias=True, dtype=None):
    torch.manual_seed(0)
    layer = MPOLinear(spec.in_features, spec.out_features, spec=spec, bias=bias, dtype=dtype)
    return layer.set_execution(cache=memory == "fast")


def check(layer, x, tolerance=1e-4):
    expected = F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias)
    y = layer(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", ["compact", "fast"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
class TestCalls:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_every_call_at_every_shape(self, spec, memory, bias, dtype):
        layer = layer_of(spec, memory, bias, dtype)
        with torch.no_grad():
            for lead in LEADS.values():
                for number in range(3):
                    x = torch.randn(*lead, spec.in_features, dtype=dtype)
                    view = torch.randn(*lead, 2 * spec.in_features, dtype=dtype)[..., ::2]
                    check(layer, x if number < 2 else view, 0.1 if dtype == torch.bfloat16 else 1e-4)
        if spec is SPECS["two sites"]:
            shapes_bound = set(layer._runners[0].bound)
            assert {torch.Size((*LEADS[name], 128)) for name in ("row", "axes", "vector")} <= shapes_bound

    def test_bound_calls_use_the_kept_matrices(self, spec, memory):
        """Wrong kept matrices change the result: otherwise the other tests could pass without them."""
        layer = layer_of(spec, memory)
        x = torch.randn(1, spec.in_features)
        with torch.no_grad():
            layer(x)
            expected = layer(x)
            for matrices in layer._runners[0]._matrices.all():
                for matrix in matrices:
                    matrix.mul_(0)
            changed = layer(x)
        assert not torch.allclose(changed, expected)


def _parametrized(layer, name):
    class Doubled(nn.Module):
        def forward(self, tensor):
            return tensor * 2

    parametrize.register_parametrization(layer, name, Doubled())


def _edit(layer):
    with torch.no_grad():
        layer.core_0_1.mul_(2)


def _step(layer):
    layer(torch.randn(3, layer.in_features)).square().sum().backward()
    with torch.enable_grad():
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


CHANGES = {
    "an edit": _edit,
    "an optimiser": lambda layer: torch.enable_grad()(_step)(layer),
    "a replaced core": lambda layer: setattr(layer, "core_0_0", nn.Parameter(layer.core_0_0.detach() * 2)),
    "new data": lambda layer: setattr(layer.core_0_0, "data", layer.core_0_0.detach() * 2),
    "a loaded state": lambda layer: layer.load_state_dict(
        {name: value * 2 for name, value in layer.state_dict().items()}, assign=True
    ),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "another bias": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias.detach() + 5)),
    "an edited bias": lambda layer: layer.bias.data.add_(5),
    "a parametrised bias": lambda layer: _parametrized(layer, "bias"),
    "a parametrised core": lambda layer: _parametrized(layer, "core_0_0"),
    "a pruned core": lambda layer: prune.random_unstructured(layer, "core_0_0", 0.5),
    "another number of threads": lambda layer: torch.set_num_threads(torch.get_num_threads() % 2 + 1),
}


@pytest.mark.parametrize("memory", ["compact", "fast"])
@pytest.mark.parametrize("spec", [SPECS["two sites"], SPECS["rebuilt when fast"], SPECS["padded"]], ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_calls_is_seen(spec, memory, change):
    layer = layer_of(spec, memory)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            for lead in ((1,), (40,)):
                x = torch.randn(*lead, spec.in_features)
                check(layer, x), check(layer, x)
        change(layer)
        with torch.no_grad():
            for lead in ((1,), (40,)):
                x = torch.randn(*lead, spec.in_features)
                check(layer, x), check(layer, x)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("memory", ["compact", "fast"])
def test_a_bias_that_comes_later_is_seen(memory):
    layer = layer_of(SPECS["two sites"], memory, bias=False)
    x = torch.randn(1, 128)
    with torch.no_grad():
        check(layer, x), check(layer, x)
        layer.bias = nn.Parameter(torch.full((128,), 5.0))
        check(layer, x), check(layer, x)


@pytest.mark.parametrize("memory", ["compact", "fast"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
class TestSurroundings:
    def test_autocast_on_and_off(self, spec, memory):
        layer = layer_of(spec, memory)
        for rows in (1, 300):
            x = torch.randn(rows, spec.in_features)
            with torch.no_grad():
                for enabled in (True, True, False, False, True, False):
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                        y = layer(x)
                    assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
                    expected = F.linear(x, layer.weight, layer.bias)
                    assert (y.float() - expected).norm() < (0.05 if enabled else 1e-4) * expected.norm()

    def test_float64_is_left_alone_by_autocast(self, spec, memory):
        layer = layer_of(spec, memory, dtype=torch.float64)
        for rows in (1, 1, 300):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(torch.randn(rows, spec.in_features, dtype=torch.float64)).dtype == torch.float64

    def test_functional_call_with_cores_that_come_and_go(self, spec, memory):
        layer = layer_of(spec, memory)
        x = torch.randn(2, spec.in_features)
        with torch.no_grad():
            layer(x)
            weight = layer.weight
            for number in range(1, 40):
                names = {
                    name: value * (number if name == "core_0_0" else 1) for name, value in layer.named_parameters()
                }
                y = functional_call(layer, names, (x,))
                torch.testing.assert_close(y, F.linear(x, number * weight, layer.bias), rtol=1e-4, atol=1e-3)
                del names

    def test_functorch_over_parameters(self, spec, memory):
        layer = layer_of(spec, memory)
        x = torch.randn(2, spec.in_features)
        stacked = {name: torch.stack([value.detach(), 2 * value.detach()]) for name, value in layer.named_parameters()}
        with torch.no_grad():
            layer(x), layer(x)
            y = torch.vmap(lambda p: functional_call(layer, p, (x,)))(stacked)
            torch.testing.assert_close(y[0], layer(x), rtol=1e-4, atol=1e-4)
            rows = torch.vmap(layer)(torch.stack([x, 2 * x]))
            torch.testing.assert_close(rows[0], layer(x), rtol=1e-4, atol=1e-4)
            tangents = {name: torch.randn_like(value) for name, value in layer.named_parameters()}
            parameters = {name: value.detach() for name, value in layer.named_parameters()}
            _, tangent = torch.func.jvp(lambda p: functional_call(layer, p, (x,)), (parameters,), (tangents,))
        expected = torch.func.jvp(lambda p: functional_call(copy.deepcopy(layer), p, (x,)), (parameters,), (tangents,))[
            1
        ]
        torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-3)

    def test_copies_and_pickles(self, spec, memory):
        layer = layer_of(spec, memory)
        x = torch.randn(2, spec.in_features)
        with torch.no_grad():
            expected = layer(x)
            for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
                assert not other._runners[0].bound
                torch.testing.assert_close(other(x), expected)
                torch.testing.assert_close(other(x), expected)

    def test_hooks_are_run(self, spec, memory):
        layer = layer_of(spec, memory)
        x = torch.randn(1, spec.in_features)
        with torch.no_grad():
            plain = layer(x)
            layer(x)
            layer.register_forward_hook(lambda module, inputs, output: output + 1)
            torch.testing.assert_close(layer(x), plain + 1)


class TestMemory:
    LARGE_BOND = ChainSpec((16, 16), (16, 16), 64)

    def kept_bytes(self, layer):
        own = {core.untyped_storage().data_ptr() for core in layer.cores[0]}
        storages = {
            matrix.untyped_storage().data_ptr(): matrix.untyped_storage().nbytes()
            for matrices in layer._runners[0]._matrices.all()
            for matrix in matrices
        }
        return sum(size for pointer, size in storages.items() if pointer not in own)

    def test_one_dense_matrix_is_kept_for_all_batches(self):
        layer = layer_of(self.LARGE_BOND, "fast")
        with torch.no_grad():
            for exponent in range(10):
                layer(torch.randn(2**exponent, 256))
        schedules = {program.schedule for program, *_ in layer._runners[0]._programs.values()}
        assert any(program.schedule.merges for program, *_ in layer._runners[0]._programs.values())
        assert self.kept_bytes(layer) <= len(schedules) * 256 * 256 * 4

    def test_old_matrices_are_let_go(self):
        layer = layer_of(self.LARGE_BOND, "fast")
        old = []
        with torch.no_grad():
            for rows in range(300, 330):
                layer(torch.randn(rows, 256))
                old += [weakref.ref(m) for matrices in layer._runners[0]._matrices.all() for m in matrices]
                layer.core_0_0.mul_(1.01)
            layer(torch.randn(300, 256))
        gc.collect()
        assert sum(reference() is not None for reference in old) <= 1

    def test_compact_execution_holds_nothing_but_the_cores(self):
        layer = layer_of(self.LARGE_BOND, "compact")
        with torch.no_grad():
            for rows in (1, 40, 300):
                layer(torch.randn(rows, 256))
            assert self.kept_bytes(layer) == 0
            layer.to(torch.bfloat16)
            layer(torch.randn(1, 256, dtype=torch.bfloat16))
            assert self.kept_bytes(layer) == 0, "views of the old cores hold their memory"


def test_backward_where_autocast_is_on():
    layer = MPOLinear(256, 256, out_dims=(4, 8, 8), in_dims=(8, 8, 4), max_bond=2)
    x = torch.randn(4096, 256, requires_grad=True)
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.sum().backward()
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-3)


def test_tuning_within_checkpointing():
    from torch.utils.checkpoint import checkpoint

    layer = MPOLinear(128, 128, max_bond=4).set_execution(autotune=True)
    x = torch.randn(3, 128, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
