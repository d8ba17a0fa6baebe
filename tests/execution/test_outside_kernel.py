"""A kernel defined outside the package: added by one line, chosen by plans, run by layers, held to the contract."""

from __future__ import annotations

import pytest
import torch
from kernel_contract import SPECS, check_kernel
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, MPOLinear
from mpochain.errors import ArgumentError, ExtensionError
from mpochain.execution import KERNELS, Kernel, tuning
from mpochain.execution.foreign import checked
from mpochain.planning import MODELS, Variant
from mpochain.planning.store import STORE

SPEC = ChainSpec((8, 16), (8, 16), 4)


class Einsum(Kernel):
    """Sweeps by ``torch.einsum``, some rows at a time; said to be faster than all others."""

    name = "einsum"

    def __init__(self):
        self.calls = 0

    def supports(self, schedule, conditions):
        return len(schedule.sweeps) > 1

    def variants(self, candidate, conditions):
        yield Variant(candidate, conditions.batch, self.name, conditions.batch, (("chunk", 3),))

    def seconds(self, variant, conditions):
        return 1e-9 * variant.schedule.sweep_macs / variant.candidate.schedule.spec.parameters

    def __call__(self, program, x, operands):
        self.calls += 1
        rows, parts = x.shape[0], []
        for start in range(0, max(rows, 1), program.options["chunk"]):
            state = x[start : start + program.options["chunk"]]
            count = state.shape[0]
            for matrix, (_, summed, after, before, _) in zip(operands, program.steps, strict=True):
                state = torch.einsum("kc,pca->pka", matrix, state.reshape(count * before, summed, after))
            parts.append(state.reshape(count, program.schedule.spec.padded_shape[0]))
        return torch.cat(parts)


@pytest.fixture
def kernel(monkeypatch):
    kernel = Einsum()
    monkeypatch.setitem(KERNELS, kernel.name, kernel)
    return kernel


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_meets_the_contract(spec):
    check_kernel(Einsum(), spec)


def test_a_plan_chooses_it_among_the_kernels_that_it_is_passed():
    chosen = mpo.plan(SPEC, 8, kernels=[*MODELS, Einsum()])
    assert chosen.kernel == chosen.chosen.kernel == "einsum"
    assert "kernel    einsum, 8 rows at a time" in str(chosen)
    assert "order 1>0, einsum, chunk 3" in str(chosen)
    assert mpo.plan(SPEC, 8).kernel != "einsum"


def test_a_layer_runs_it(kernel):
    layer = MPOLinear(128, 128, spec=SPEC)
    assert layer.plan(5)[0].kernel == "einsum"
    x = torch.randn(2, 5, 128, requires_grad=True)
    y, expected = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
    assert kernel.calls == 1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    leaves = [x, *layer.parameters()]
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for number in range(2, 5):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
            assert kernel.calls == number, "a bound call goes past the kernel"
        layer.core_0_0.mul_(2)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


def test_graphs_that_it_cannot_be_part_of_go_past_it(kernel):
    layer = MPOLinear(128, 128, spec=SPEC)
    x = torch.randn(5, 128)
    y = torch.func.vmap(layer)(x[None])[0]
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    assert kernel.calls == 0


def test_it_is_timed_and_its_name_is_stored(kernel, monkeypatch):
    layer = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True)
    timed = {entry.variant.kernel for entry in layer.plan(4)[0].considered if entry.measured is not None}
    assert "einsum" in timed
    assert kernel.calls > 0
    (record,) = STORE._plans.values()
    assert {"chunk": 3} in [entry["options"] for entry in record["timed"] if entry["kernel"] == "einsum"]
    # Recalled in another process, but not where the kernel is unknown.
    tuning._tuned.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_timed", lambda *_: pytest.fail("timed again"))
        assert layer.plan(4)[0].measured_seconds is not None
    monkeypatch.delitem(KERNELS, "einsum")
    fresh = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True).plan(4)[0]
    assert "einsum" not in {entry.variant.kernel for entry in fresh.considered}


def test_a_key_need_not_be_the_name(monkeypatch):
    kernel = Einsum()
    monkeypatch.setitem(KERNELS, "mine", kernel)
    layer, x = MPOLinear(128, 128, spec=SPEC), torch.randn(5, 128)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    assert kernel.calls == 1


class OtherName(Einsum):
    def variants(self, candidate, conditions):
        yield Variant(candidate, conditions.batch, "other", conditions.batch)


class NoTime(Einsum):
    def seconds(self, variant, conditions):
        return float("nan")


class NegativeTime(Einsum):
    def seconds(self, variant, conditions):
        return -1.0


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (OtherName(), "kernel 'einsum' has a variant of the kernel 'other'"),
        (NoTime(), "kernel 'einsum' predicts nan seconds"),
        (NegativeTime(), "kernel 'einsum' predicts -1.0 seconds"),
        (Einsum, "must be an instance of KernelModel or Kernel, got <class .*Einsum'>; give an instance"),
        ("tiled", "must be an instance of KernelModel or Kernel, got 'tiled'"),
    ],
)
def test_a_kernel_that_breaks_the_protocol_is_named(kernel, message, monkeypatch):
    with pytest.raises(ArgumentError, match=message):
        mpo.plan(SPEC, 8, kernels=[kernel])
    monkeypatch.setitem(KERNELS, "einsum", kernel)
    with pytest.raises(ArgumentError, match=message):
        MPOLinear(128, 128, spec=SPEC)(torch.randn(5, 128))


@pytest.mark.parametrize("place", ["supports", "variants", "seconds"])
def test_what_it_raises_in_a_plan_names_it_and_the_chain(place, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("nothing to divide")

    kernel = Einsum()
    monkeypatch.setattr(kernel, place, fail)
    with pytest.raises(ExtensionError, match="kernel 'einsum', plan of the chain .*: ZeroDivisionError: nothing"):
        mpo.plan(SPEC, 8, kernels=[kernel])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (torch.zeros(5, 7), r"it returned a tensor of shape \(5, 7\); expected a tensor of shape \(5, 128\)"),
        (None, "it returned NoneType"),
    ],
)
def test_what_it_raises_or_returns_in_a_call_names_it_and_the_chain(kernel, monkeypatch, training, result, message):
    def run(*_):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(kernel, "run", run)
    layer = MPOLinear(128, 128, spec=SPEC)
    with torch.set_grad_enabled(training), pytest.raises(ExtensionError, match=f"'einsum', layer of the .*: {message}"):
        layer(torch.randn(5, 128))


def test_errors_of_the_librarys_own_kernels_are_not_changed():
    layer = MPOLinear(128, 128, spec=SPEC)
    assert checked(KERNELS["tiled"], layer.spec) is KERNELS["tiled"]


def test_a_layer_names_the_plan_that_it_runs(monkeypatch):
    layer, x = MPOLinear(128, 128, spec=SPEC), torch.randn(5, 128)
    layer(x)
    kernel = Einsum()
    monkeypatch.setitem(KERNELS, kernel.name, kernel)
    assert layer.plan(5, training=True)[0].kernel != "einsum"
    layer(x)
    assert not kernel.calls
    layer.set_execution()
    assert layer.plan(5, training=True)[0].kernel == "einsum"
    layer(x)
    assert kernel.calls
