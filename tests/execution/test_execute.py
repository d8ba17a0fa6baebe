"""Execution beyond the dense contract: kept matrices, tensors saved for the backward pass, changed cores."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, specs
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, MPOError, MPOLinear
from mpochain.execution import KERNELS, ChainRunner, Program
from mpochain.execution.kernels.tiled import run_sweep
from mpochain.planning import candidates

WIDE = ChainSpec((48, 64), (24, 32), 32)


def sweeping(spec, batch):
    return next(c for c in candidates(spec, batch) if not c.rebuilds)


@settings(max_examples=25)
@given(specs(min_sites=2, max_sites=4, padding=False, max_entries=500), SEEDS, st.integers(1, 5), st.integers(1, 3))
def test_gradcheck_of_the_custom_backward(spec, seed, rows, tile):
    schedule = sweeping(spec, rows).schedule
    generator = torch.Generator().manual_seed(seed)
    program = Program(schedule, KERNELS["tiled"], tile)
    cores = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in spec.core_shapes]
    matrices = [m.detach().requires_grad_() for m in program.matrices(cores)]
    x = torch.randn(rows, spec.in_features, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *ms: run_sweep(x, ms, program.steps, tile), (x, *matrices), fast_mode=True
    )


@pytest.mark.parametrize("needs", ["x", "matrices"])
def test_gradients_that_are_not_needed_are_not_computed(needs):
    spec = ChainSpec((3, 4), (2, 5), 3)
    schedule = sweeping(spec, 4).schedule
    program = Program(schedule, KERNELS["tiled"], 2)
    matrices = program.matrices([torch.randn(shape) for shape in spec.core_shapes])
    matrices = [m.detach().requires_grad_(needs == "matrices") for m in matrices]
    x = torch.randn(4, 10, requires_grad=needs == "x")
    run_sweep(x, matrices, program.steps, 2).sum().backward()
    assert (x.grad is not None) is (needs == "x")
    assert all((m.grad is not None) is (needs == "matrices") for m in matrices)


def test_the_registered_operator_is_sound():
    spec = ChainSpec((3, 4, 2), (2, 5, 2), 3)
    schedule = sweeping(spec, 4).schedule
    program = Program(schedule, KERNELS["compiled"], 2)
    matrices = program.matrices([torch.randn(shape) for shape in spec.core_shapes])
    matrices = [m.detach().contiguous().requires_grad_() for m in matrices]
    sizes = [size for step in program.steps for size in step]
    torch.library.opcheck(
        torch.ops.mpochain.sweep.default, (torch.randn(5, 20, requires_grad=True), matrices, sizes, 2)
    )


def test_training_saves_only_the_input_and_the_cores():
    layer = MPOLinear(256, 256, out_dims=(4, 8, 8), in_dims=(8, 8, 4), max_bond=2)
    assert not layer.plan(4096, training=True)[0].chosen.rebuilds
    saved = []

    def pack(tensor):
        saved.append(tensor.untyped_storage())
        return tensor

    x = torch.randn(4096, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    bytes_saved = sum({s.data_ptr(): s.nbytes() for s in saved}.values())
    # One state of this sweep is four times the input; what is saved beside it is a few copies of the cores.
    assert bytes_saved <= x.nbytes + 64 * 1024
    y.sum().backward()


def test_autocast_runs_the_custom_backward():
    layer = MPOLinear(256, 256, out_dims=(4, 8, 8), in_dims=(8, 8, 4), max_bond=2)
    assert not layer.plan(4096, training=True)[0].chosen.rebuilds
    x = torch.randn(4096, 256, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    names = set()
    node = [y.grad_fn]
    while node:
        names.add(type(node[-1]).__name__)
        node += [before for before, _ in node.pop().next_functions if before is not None]
    assert "_SweepBackward" in names
    y.float().square().sum().backward()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    for gradient, reference in zip([x.grad, *(p.grad for p in layer.parameters())], expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.05 * reference.norm()


@pytest.mark.parametrize("change", ["optimiser", "load", "edit", "replace", "dtype", "data"])
def test_kept_views_follow_their_cores(change):
    spec = ChainSpec((8, 16), (8, 16), 4)
    layer = MPOLinear(128, 128, spec=spec)
    x = torch.randn(1, 128)
    with torch.no_grad():
        before = layer(x)
        (runner,) = layer._runners
        (kept,) = runner._matrices.all()
        assert [m.data_ptr() for m in kept] == [c.data_ptr() for c in layer.cores[0]][::-1], "views own no memory"
    if change == "optimiser":
        layer(x).square().sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
    elif change == "load":
        layer.load_state_dict(MPOLinear(128, 128, spec=spec).state_dict(), assign=True)
    elif change == "edit":
        with torch.no_grad():
            layer.core_0_1.mul_(2)
    elif change == "replace":
        layer.core_0_1 = nn.Parameter(layer.core_0_1.detach() * 2)
    elif change == "data":
        layer.core_0_1.data.mul_(2)
    else:
        layer.double()
        x = x.double()
    with torch.no_grad():
        after = layer(x)
    torch.testing.assert_close(after, nn.functional.linear(x, layer.weight, layer.bias), atol=1e-4, rtol=1e-4)
    assert change == "dtype" or (after - before).abs().max() > 1e-3


def test_a_core_whose_memory_is_not_in_order_is_followed_too():
    spec = ChainSpec((8, 16), (8, 16), 4)
    layer = MPOLinear(128, 128, spec=spec)
    layer.core_0_0 = nn.Parameter(layer.core_0_0.detach().transpose(1, 3).contiguous().transpose(1, 3))
    assert not layer.core_0_0.is_contiguous()
    x = torch.randn(1, 128)
    with torch.no_grad():
        layer(x)
        layer.core_0_0.mul_(2)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


class TestFast:
    def layer(self):
        torch.manual_seed(0)
        layer = MPOLinear(768, 3072, spec=WIDE)
        # One plan from the first call on; tests of trials are in test_trials.py.
        assert mpo.set_execution(layer, cache=True, autotune=False) == 1
        return layer

    @staticmethod
    def kept(layer):
        (runner,) = layer._runners
        return [matrix for matrices in runner._matrices.all() for matrix in matrices]

    def test_the_second_call_reuses_the_merged_cores(self):
        layer, x = self.layer(), torch.randn(64, 768)
        with torch.no_grad():
            first = layer(x)
            (matrix,) = self.kept(layer)
            assert matrix.shape == (3072, 768)
            assert torch.equal(layer(x), first)
            assert self.kept(layer)[0] is matrix
            mpo.set_execution(layer)
            torch.testing.assert_close(layer(x), first, atol=1e-4, rtol=1e-4)
            own = {core.data_ptr() for core in layer.cores[0]}
            assert {kept.data_ptr() for kept in self.kept(layer)} <= own, "compact execution keeps views at most"

    @pytest.mark.parametrize(
        "change", ["optimiser", "load", "edit", "replace", "dtype", "assign", "fused optimiser", "foreach optimiser"]
    )
    def test_a_changed_core_is_noticed(self, change):
        layer, x = self.layer(), torch.randn(64, 768)
        with torch.no_grad():
            before = layer(x)
        if "optimiser" in change:
            options = {"fused": True} if "fused" in change else {"foreach": True} if "foreach" in change else {}
            layer(x).square().sum().backward()
            torch.optim.AdamW(layer.parameters(), lr=0.1, **options).step()
        elif change == "load":
            layer.load_state_dict(MPOLinear(768, 3072, spec=WIDE).state_dict())
        elif change == "assign":
            layer.load_state_dict(MPOLinear(768, 3072, spec=WIDE).state_dict(), assign=True)
        elif change == "edit":
            with torch.no_grad():
                layer.core_0_1.mul_(2)
        elif change == "replace":
            layer.core_0_1 = nn.Parameter(layer.core_0_1.detach() * 2)
        else:
            layer.double()
            x = x.double()
        with torch.no_grad():
            after = layer(x)
        torch.testing.assert_close(after, nn.functional.linear(x, layer.weight, layer.bias), atol=1e-3, rtol=1e-3)
        assert change == "dtype" or (after - before).abs().max() > 1e-3

    def test_with_gradients_nothing_is_kept(self):
        layer = self.layer()
        layer(torch.randn(64, 768)).sum().backward()
        assert self.kept(layer) == []
        assert all(p.grad is not None for p in layer.parameters())

    def test_in_inference_mode(self):
        layer, x = self.layer(), torch.randn(64, 768)
        with torch.inference_mode():
            layer(x)
            before = layer(x)
            layer.core_0_1.mul_(2)
            assert (layer(x) - before).abs().max() > 1e-3

    def test_copies_carry_the_settings_and_not_the_cache(self):
        layer, x = self.layer(), torch.randn(64, 768)
        with torch.no_grad():
            expected = layer(x)
            other = copy.deepcopy(layer)
            assert other._runners[0].memory == "fast"
            assert self.kept(other) == []
            torch.testing.assert_close(other(x), expected)

    def test_all_layers_of_a_model(self):
        model = nn.Sequential(MPOLinear(8, 8, max_bond=2), nn.ReLU(), nn.ModuleList([MPOLinear(8, 8, max_bond=2)]))
        assert mpo.set_execution(model, cache=True) == 2

    def test_bad_input(self):
        with pytest.raises(MPOError, match="contains no compressed layer"):
            mpo.set_execution(nn.ReLU(), cache=True)
        layer = self.layer()
        with pytest.raises(MPOError, match="memory must be 'compact' or 'fast', got 'huge'"):
            mpo.set_execution(layer, memory="huge")
        assert layer._runners[0].memory == "fast", "a refused choice changes nothing"


def test_a_large_batch_is_tiled():
    runner = ChainRunner(ChainSpec((64, 64), (64, 64), 4))
    plan = runner.plan(1024, training=False)
    assert 16 <= plan.tile < 1024
    assert f"{plan.tile} rows at a time" in str(plan)
