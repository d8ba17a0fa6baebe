"""Dense contract of every kernel and every way to run a chain: value and gradients are those of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from kernel_contract import BATCHES, SPECS, case, check_kernel, dense, programs
from torch import Tensor, nn

from mpochain import ChainSpec, MPOChain, MPOLinear, plan
from mpochain.execution import KERNELS, ChainRunner, Program
from mpochain.execution.measurement import setting_of
from mpochain.planning import MODELS, Machine, candidates
from mpochain.planning.store import STORE


@dataclass
class Way:
    """A way to run a chain: ``run(x, cores, spec) -> y``."""

    run: Callable[[Tensor, tuple[Tensor, ...], ChainSpec], Tensor]


def _layer(x, cores, spec, wrap=lambda layer: layer):
    layer = MPOLinear(spec.in_features, spec.out_features, spec=spec, bias=False, dtype=x.dtype)
    for name, core in zip(layer.core_names[0], cores, strict=True):
        # Plain tensors in place of the parameters, so that gradients reach the test's own cores.
        del layer._parameters[name]
        setattr(layer, name, core)
    return wrap(layer)(x)


def _compiled(x, cores, spec):
    torch._dynamo.reset()
    return _layer(x, cores, spec, lambda layer: torch.compile(layer, fullgraph=True, backend="aot_eager"))


class _Chain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.runner = ChainRunner(spec)

    def forward(self, x, *cores):
        return self.runner(x, cores)


@cache
def _program_of(spec, dtype):
    cores = tuple(torch.zeros(shape, dtype=dtype) for shape in spec.core_shapes)
    rows = {0: torch.export.Dim.DYNAMIC}
    shapes_ = {"x": rows, "cores": tuple(None for _ in cores)}
    x = torch.zeros(6, spec.in_features, dtype=dtype)
    return torch.export.export(_Chain(spec), (x, *cores), dynamic_shapes=shapes_).module()


def _exported(x, cores, spec):
    rows = x.reshape(-1, spec.in_features)
    count = rows.shape[0]
    if count < 2:
        # An exported batch is of two or more: give it rows that are cut off again.
        rows = torch.cat([rows, rows.new_zeros(2 - count, spec.in_features)])
    y = _program_of(spec, x.dtype)(rows, *cores)[:count]
    return y.reshape(*x.shape[:-1], spec.out_features)


def _candidate(number):
    """The portable kernel, after it was compared with the same schedule on the array API's namespace."""
    import array_api_compat.torch as xp

    def run(x, cores, spec):
        offers = list(candidates(spec, max(x.numel() // spec.in_features, 1)))
        schedule = offers[number % len(offers)].schedule
        rows = x.reshape(-1, spec.in_features)
        y = Program(schedule, KERNELS["portable"], rows.shape[0])(rows, cores)
        torch.testing.assert_close(schedule.sweep(rows, schedule.merge(cores, xp), xp), y, rtol=0, atol=0)
        return y.reshape(*x.shape[:-1], spec.out_features)

    return run


def _twice(x, cores, spec):
    """Half of the chain onto the other half, as terms of a sum are accumulated."""
    rows, runner = x.reshape(-1, spec.in_features), ChainRunner(spec)
    halved = (cores[0] / 2, *cores[1:])
    return runner(rows, halved, None, runner(rows, halved)).reshape(*x.shape[:-1], spec.out_features)


def _tuned(x, cores, spec):
    setting = setting_of(x.dtype, x.device)
    # Constants need not be measured for what is tested here.
    STORE._machines[str(setting)] = Machine(measured=True)
    return _layer(x, cores, spec, lambda layer: layer.set_execution(autotune=True))


def _threads(count):
    def run(x, cores, spec):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return _layer(x, cores, spec)
        finally:
            torch.set_num_threads(before)

    return run


WAYS = {
    "value": Way(lambda x, cores, spec: MPOChain(cores, spec).apply(x)),
    "layer": Way(_layer),
    "compiled layer": Way(_compiled),
    "exported runner": Way(_exported),
    "runner": Way(
        lambda x, cores, spec: ChainRunner(spec)(x.reshape(-1, spec.in_features), cores).reshape(
            *x.shape[:-1], spec.out_features
        )
    ),
    **{
        f"plan {mode} {memory}": Way(
            lambda x, cores, spec, mode=mode, memory=memory: plan(spec, 6, mode=mode, memory=memory)(x, *cores)
        )
        for mode in ("inference", "training")
        for memory in ("compact", "fast")
    },
    **{f"candidate {k}, portable": Way(_candidate(k)) for k in range(7)},
    "a sum, in place": Way(_twice),
    "tuned layer": Way(_tuned),
    **{f"{threads} thread": Way(_threads(threads)) for threads in (1, 2)},
}


# Kernels in Triton, whose interpreter takes minutes for all cases; test_triton.py holds them to a part of the contract,
# and on a GPU to the contract itself.
ELSEWHERE = {"fused"}

# Every kernel on every spec for which it offers a program.
KERNEL_CASES = {
    f"{kernel.name}, {name}": (kernel, spec)
    for kernel in KERNELS.values()
    for name, spec in SPECS.items()
    if kernel.name not in ELSEWHERE and any(programs(kernel, spec))
}


@pytest.mark.parametrize(("kernel", "spec"), KERNEL_CASES.values(), ids=KERNEL_CASES)
def test_kernels(kernel, spec):
    check_kernel(kernel, spec)


def test_the_cases_reach_every_kernel_and_every_size_of_theirs():
    assert {kernel.name for kernel, _ in KERNEL_CASES.values()} == set(KERNELS) - ELSEWHERE
    offers = [program for kernel, spec in KERNEL_CASES.values() for program, _ in programs(kernel, spec)]
    assert {program.tile for program in offers if program.kernel.name == "tiled"} >= {1, 4, 6}
    assert {program.options["panel"] for program in offers if program.kernel.name == "panels"} >= {1, 2}
    assert any(least < 6 for program in offers for *_, least in program.steps), "no step is batched"
    every = [offer for kernel, spec in KERNEL_CASES.values() for offer in programs(kernel, spec)]
    trained = {program.kernel.name for program, differentiable in every if differentiable}
    assert trained == set(KERNELS) - {"panels"} - ELSEWHERE


def test_every_planned_kernel_has_a_runner():
    assert {model.name for model in MODELS} <= set(KERNELS)
    assert all(name == kernel.name for name, kernel in KERNELS.items())
    for spec in SPECS.values():
        for mode in ("inference", "training"):
            with_runners = plan(spec, 6, mode=mode, kernels=list(KERNELS.values()))
            assert str(with_runners) == str(plan(spec, 6, mode=mode))


# Compilation takes most of a second per call, and the graph differs only between chains of one site, of several, and
# padded ones; the layer itself runs on all specs.
_COMPILED = ("one site", "three sites", "prime, padded")

CASES = {
    f"{way}-{spec}": (WAYS[way], SPECS[spec])
    for way in WAYS
    for spec in (_COMPILED if way == "compiled layer" else SPECS)
}


@pytest.mark.parametrize(("way", "spec"), CASES.values(), ids=CASES)
class TestContract:
    def test_values_and_gradients_in_float64(self, spec, way):
        for lead in BATCHES.values():
            x, cores = case(spec, lead, torch.float64)
            y, expected = way.run(x, cores, spec), dense(x, cores, spec)
            assert y.shape == expected.shape == (*lead, spec.out_features)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
            weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            gradients = torch.autograd.grad((y * weights).sum(), (x, *cores))
            expected_gradients = torch.autograd.grad((expected * weights).sum(), (x, *cores))
            for a, b in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
    def test_shorter_types(self, spec, way, dtype, tolerance):
        x, cores = case(spec, (6,), dtype)
        y = way.run(x, cores, spec)
        assert y.dtype == dtype
        expected = dense(x.double(), tuple(core.double() for core in cores), spec)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())

    def test_inputs_that_are_not_contiguous(self, spec, way):
        x, cores = case(spec, (4, 6), torch.float64)
        for view in (x.transpose(0, 1), x[:, ::2], x.flip(0), x[:1].expand(3, 6, -1)):
            torch.testing.assert_close(way.run(view, cores, spec), dense(view, cores, spec), rtol=1e-9, atol=1e-9)
        strided = torch.randn(6, 2 * spec.in_features, dtype=torch.float64)[:, ::2]
        torch.testing.assert_close(way.run(strided, cores, spec), dense(strided, cores, spec), rtol=1e-9, atol=1e-9)

    def test_without_gradients(self, spec, way):
        for lead in BATCHES.values():
            x, cores = case(spec, lead, torch.float64)
            with torch.no_grad():
                torch.testing.assert_close(way.run(x, cores, spec), dense(x, cores, spec), rtol=1e-9, atol=1e-9)
