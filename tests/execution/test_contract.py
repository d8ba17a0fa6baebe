"""One contract, met by every representation and every way to run it: it is the dense matrix, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from mpochain import ChainSpec, MPOChain, MPOLinear, plan, shapes
from mpochain.execution import ChainRunner, Program, run_portable
from mpochain.execution.kernels.tiled import steps_of
from mpochain.execution.measurement import setting_of
from mpochain.planning import Machine, candidates
from mpochain.planning.store import STORE

SPECS = {
    "two sites": ChainSpec((3, 4), (2, 5), 3),
    "three sites": ChainSpec((2, 3, 2), (3, 1, 4), 4),
    "four sites": ChainSpec((2, 1, 3, 2), (2, 3, 2, 1), 3),
    "one site": ChainSpec((5,), (4,)),
    "unit dims": ChainSpec((1, 6, 1), (5, 1, 2), 5),
    "low rank": shapes.low_rank(7, 5, 2),
    "skewed": shapes.skewed(16, 18, 2, 3),
    "prime, padded": ChainSpec((3, 4), (2, 4), 3, out_features=11, in_features=7),
    "bond 1": ChainSpec((3, 4), (2, 5), 1),
}
BATCHES = {"row": (1,), "rows": (6,), "none": (0,), "vector": (), "many axes": (2, 1, 3)}


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


def _candidate(number, runner):
    def run(x, cores, spec):
        found = list(candidates(spec, max(x.numel() // spec.in_features, 1)))
        schedule = found[number % len(found)].schedule
        rows = x.reshape(-1, spec.in_features)
        return runner(schedule, rows, cores).reshape(*x.shape[:-1], spec.out_features)

    return run


def _portable(schedule, rows, cores):
    import array_api_compat.torch as xp

    torch.testing.assert_close(
        schedule.sweep(rows, schedule.merge(cores, xp), xp), run_portable(schedule, rows, cores), rtol=0, atol=0
    )
    return run_portable(schedule, rows, cores)


def _program(tile, panel=0, keeps_states=False):
    def run(schedule, rows, cores):
        parts = panel if schedule.merges else 0
        return Program(schedule, steps_of(schedule), tile, parts, keeps_states)(rows, cores, None)

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
    "value": Way(lambda x, cores, spec: MPOChain(cores, spec) @ x),
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
    **{f"candidate {k}, portable": Way(_candidate(k, _portable)) for k in range(7)},
    **{
        f"candidate {k}, tiled by {tile}": Way(_candidate(k, _program(tile)))
        for k, tile in [(0, 4), (1, 1), (1, 4), (1, 1000), (2, 2), (2, 5), (3, 4), (4, 4), (5, 1), (6, 1000)]
    },
    **{f"candidate {k}, states kept": Way(_candidate(k, _program(9, keeps_states=True))) for k in range(5)},
    **{f"rebuilt in panels of {panel}": Way(_candidate(0, _program(9, panel))) for panel in (1, 2, 1000)},
    "a sum, in place": Way(_twice),
    "tuned layer": Way(_tuned),
    **{f"{threads} thread": Way(_threads(threads)) for threads in (1, 2)},
}


def _case(spec, lead, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cores = tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in spec.core_shapes)
    x = torch.randn((*lead, spec.in_features), generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), tuple(core.requires_grad_() for core in cores)


def _dense(x, cores, spec):
    return nn.functional.linear(x, MPOChain(cores, spec).to_matrix())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
class TestContract:
    def test_values_and_gradients_in_float64(self, spec, way):
        for lead in BATCHES.values():
            x, cores = _case(spec, lead, torch.float64)
            y, expected = way.run(x, cores, spec), _dense(x, cores, spec)
            assert y.shape == expected.shape == (*lead, spec.out_features)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
            weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            ours = torch.autograd.grad((y * weights).sum(), (x, *cores))
            theirs = torch.autograd.grad((expected * weights).sum(), (x, *cores))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
    def test_shorter_types(self, spec, way, dtype, tolerance):
        x, cores = _case(spec, (6,), dtype)
        y = way.run(x, cores, spec)
        assert y.dtype == dtype
        wide, wide_cores = x.double(), tuple(core.double() for core in cores)
        expected = _dense(wide, wide_cores, spec)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())

    def test_inputs_that_are_not_contiguous(self, spec, way):
        x, cores = _case(spec, (4, 6), torch.float64)
        for view in (x.transpose(0, 1), x[:, ::2], x.flip(0), x[:1].expand(3, 6, -1)):
            torch.testing.assert_close(way.run(view, cores, spec), _dense(view, cores, spec), rtol=1e-9, atol=1e-9)
        wide = torch.randn(6, 2 * spec.in_features, dtype=torch.float64)[:, ::2]
        torch.testing.assert_close(way.run(wide, cores, spec), _dense(wide, cores, spec), rtol=1e-9, atol=1e-9)

    def test_without_gradients(self, spec, way):
        for lead in BATCHES.values():
            x, cores = _case(spec, lead, torch.float64)
            with torch.no_grad():
                torch.testing.assert_close(way.run(x, cores, spec), _dense(x, cores, spec), rtol=1e-9, atol=1e-9)
