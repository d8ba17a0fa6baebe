"""Autotuning: which variants are timed, what is stored, and which records are valid."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain import ChainSpec, MPOLinear
from mpochain.execution import measure_machine, measurement, tuned, tuning
from mpochain.execution.measurement import interleaved
from mpochain.planning import Machine, Setting
from mpochain.planning.store import STORE

SPEC = ChainSpec((8, 16), (8, 16), 4)
HERE = Setting("float32", threads=torch.get_num_threads())


def _tune(mode="inference", memory="compact", batch=4):
    return tuned(SPEC, batch, mode=mode, memory=memory, setting=HERE)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("memory", ["compact", "fast"])
def test_a_tuned_plan_runs_the_fastest_of_what_was_timed(mode, memory):
    fastest = _tune(mode, memory)
    timed = [entry for entry in fastest.considered if entry.measured is not None]
    # How many are hopeless depends on what this machine was measured to be.
    predicted = mpo.plan(SPEC, 4, mode=mode, memory=memory, setting=HERE, machine=fastest.machine)
    promising = {
        entry.variant.candidate
        for rank, entry in enumerate(predicted.considered)
        if entry.predicted <= 4 * predicted.predicted_seconds and (rank < 3 or entry.variant.rebuilds)
    }
    assert promising <= {entry.variant.candidate for entry in timed}
    assert fastest.chosen is timed[0].variant
    assert fastest.measured_seconds == min(entry.measured for entry in timed)
    assert {entry.variant.candidate for entry in fastest.considered} == {
        entry.variant.candidate for entry in mpo.plan(SPEC, 4, mode=mode, memory=memory).considered
    }
    text = str(fastest)
    for word in ("predicted and measured", "measured  ", "dense", "machine constants: measured here"):
        assert word in text


def test_the_fastest_is_recalled_without_timing(monkeypatch):
    first = _tune()
    tuning._tuned.cache_clear()
    monkeypatch.setattr(tuning, "_timed", lambda *_: pytest.fail("timed again"))
    second = _tune()
    assert second is not first
    assert str(second) == str(first)


def test_another_process_recalls_it():
    fastest = _tune()
    code = (
        "import torch; from mpochain import ChainSpec; from mpochain.execution import tuned, tuning\n"
        "from mpochain.planning import Setting\n"
        "tuning._timed = None\n"
        f"torch.set_num_threads({HERE.threads})\n"
        f"print(tuned(ChainSpec((8, 16), (8, 16), 4), 4, mode='inference', memory='compact', setting={HERE!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == str(fastest), run.stderr


def test_the_hopeless_are_not_timed():
    # Over a minute for one call of order 0>1, whose states are 64 times as large: measured once, by accident.
    spec = ChainSpec((512, 8), (8, 512), 64)
    predicted = mpo.plan(spec, 1024, setting=HERE)
    assert predicted.considered[-1].predicted > 10 * predicted.predicted_seconds
    fastest = tuned(spec, 1024, mode="inference", memory="compact", setting=HERE)
    predicted = mpo.plan(spec, 1024, setting=HERE, machine=fastest.machine)
    hopeless = {entry.variant for entry in predicted.considered if entry.predicted > 4 * predicted.predicted_seconds}
    assert hopeless
    assert hopeless.isdisjoint(entry.variant for entry in fastest.considered if entry.measured is not None)


def _without_kernels(record):
    """As records were before kernels had names."""
    for entry in record["timed"]:
        del entry["kernel"], entry["options"]
        entry |= {"panel": 1, "keeps_states": False}


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["timed"][0].update(groups=[[0, 7]]),
        lambda record: record["timed"][0].update(order="x"),
        lambda record: record["timed"][0].update(tile=0),
        lambda record: record["timed"][0].update(tile=float("inf")),
        lambda record: record.update(dense=-1.0),
        lambda record: record["timed"][0].update(seconds=-1),
        lambda record: record["timed"][0].update(seconds=None),
        lambda record: record["timed"][0].pop("options"),
        lambda record: record["timed"][0].update(options={"unknown": 3}),
        lambda record: record["timed"][0].update(options=[1]),
        lambda record: record["timed"][0].update(kernel="unknown"),
        lambda record: record["timed"][0].update(kernel=["tiled"]),
        lambda record: record["timed"][0].update(kernel="autograd"),  # of training
        lambda record: record["timed"][0].update(kernel="compiled"),  # of another graph
        _without_kernels,
        lambda record: record["timed"].clear(),
        lambda record: record.update(timed=3),
        lambda record: record.pop("dense"),
    ],
)
def test_an_invalid_record_is_measured_again(change):
    _tune()
    tuning._tuned.cache_clear()
    content = json.loads(STORE.path.read_text())
    (key,) = content["plans"]
    change(content["plans"][key])
    STORE._plans[key] = content["plans"][key]
    fastest = _tune()
    assert fastest.measured_seconds > 0
    assert fastest.chosen.tile >= 1
    (entry, *_) = STORE.decision(key)["timed"]
    assert entry["seconds"] == fastest.measured_seconds
    assert entry["kernel"] == fastest.kernel


def test_constants_are_plausible_and_kept():
    machine = measure_machine(HERE)
    assert machine.measured
    assert STORE.machine(HERE) == machine
    assert 1e8 < machine.gemm_rate < 1e14
    assert 1e7 < machine.bandwidth <= machine.cache_bandwidth
    assert 0 < machine.call_seconds < 1e-2
    assert 0 < machine.scatter < 100


@pytest.mark.parametrize(
    ("stored", "now", "again", "kept"),
    [
        (None, 1.0, (1.0, 0.01), 1.0),  # nothing was measured before
        ((1.0, 0.01), 1.0, None, 1.0),
        ((1.0, 0.01), 0.3, None, 1.0),  # other work makes this moment slower
        ((1.0, 0.01), 1.5, (1.5, 0.01), 1.5),  # other work made that moment slower
        ((1.0, 0.5), 1.0, (0.9, 0.01), 0.9),
        ((1.0, 0.5), 1.0, (0.7, 0.9), 1.0),  # both are doubtful
        ((1.0, 0.5), 1.0, (1.2, 0.9), 1.2),
    ],
)
def test_doubtful_constants_are_measured_again(monkeypatch, stored, now, again, kept):
    rate = 1e11
    if stored is not None:
        STORE.add_machine(HERE, replace(Machine(), gemm_rate=stored[0] * rate, scatter=stored[1], measured=True))

    def measure(setting):
        assert again is not None, "measured again"
        machine = replace(Machine(), gemm_rate=again[0] * rate, scatter=again[1], measured=True)
        STORE.add_machine(setting, machine)
        return machine

    seconds = 2 * measurement._SIDE**3 / (now * rate)
    monkeypatch.setattr(measurement, "measure_machine", measure)
    monkeypatch.setattr(measurement, "_large_products", lambda _, count: [seconds] * count)
    assert measurement.trusted_machine(HERE).gemm_rate == pytest.approx(kept * rate)
    assert STORE.machine(HERE).gemm_rate == pytest.approx(kept * rate)


class TestLayers:
    def test_plans_are_measured_at_the_first_call_of_a_size(self):
        layer = MPOLinear(128, 128, spec=SPEC).set_execution(cache=True, autotune=True)
        x = torch.randn(5, 128)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer.plan(8)[0].measured_seconds is not None
        y = layer(x)
        y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        mpo.set_execution(layer)
        assert layer.plan(8)[0].measured_seconds is None

    def test_precompile_measures_ahead(self, monkeypatch):
        layer = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True).precompile([1, 8])
        monkeypatch.setattr(tuning, "_timed", lambda *_: pytest.fail("timed in a call"))
        with torch.no_grad():
            layer(torch.randn(1, 128)), layer(torch.randn(7, 128))
        layer(torch.randn(8, 128))

    def test_in_the_middle_of_anything(self):
        layer = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True)
        x = torch.randn(3, 128)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        with torch.inference_mode():
            layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == layer(x).dtype == torch.bfloat16
        assert torch.equal(torch.rand(1), expected), "the caller's random numbers are left alone"

    def test_nothing_is_timed_on_meta_or_with_fake_tensors(self, monkeypatch):
        monkeypatch.setattr(tuning, "PlanBench", lambda *a, **k: pytest.fail("timed"))
        monkeypatch.setattr(tuning, "trusted_machine", lambda *a, **k: pytest.fail("timed"))
        with torch.device("meta"):
            layer = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True)
            assert layer(torch.empty(3, 128)).shape == (3, 128)
        with torch._subclasses.FakeTensorMode(), torch.no_grad():
            layer = MPOLinear(128, 128, spec=SPEC).set_execution(autotune=True)
            assert layer(torch.empty(3, 128)).shape == (3, 128)
        assert STORE._plans == {}

    def test_threads_and_types_have_plans_of_their_own(self):
        layer = MPOLinear(128, 128, spec=SPEC)
        before = torch.get_num_threads()
        x = torch.randn(3, 128)
        try:
            with torch.no_grad():
                layer(torch.randn(2, 3, 128)[0].t().contiguous().t())
                torch.set_num_threads(other := before % 2 + 1)
                layer(x[:2])
                assert f"{other} thread" in str(layer.plan(2)[0])
                layer.double()
                layer(x.double())
        finally:
            torch.set_num_threads(before)
        settings = {(key[2], key[4]) for key in layer._runners[0]._programs}
        assert {dtype for dtype, _ in settings} == {torch.float32, torch.float64}
        assert other in {threads for _, threads in settings}


def test_slow_calls_are_timed_once():
    import time

    counts = {"fast": 0, "slow": 0}

    def call(name, seconds):
        counts[name] += 1
        time.sleep(seconds)

    fast, slow = interleaved([lambda: call("fast", 0.002), lambda: call("slow", 0.02)], "cpu", rounds=3)
    assert counts["slow"] <= 4 < counts["fast"]
    assert 0.002 <= fast < slow
