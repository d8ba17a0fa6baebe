"""Plans that correct themselves: which calls are tried, which plan is settled on, and what is remembered."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mpochain import MPOLinear, set_execution
from mpochain.execution import predicted_plans, trials
from mpochain.execution.measurement import setting_of
from mpochain.execution.trials import Trial, may_try
from mpochain.planning import plan
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

# Calls of 512 rows are predicted to take some hundreds of microseconds.
SPEC = ChainSpec((8, 8, 10), (8, 8, 8), 8)
ROWS = 512


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def timed(monkeypatch):
    """Calls that were timed, by variant; the third variant of each trial is the fastest."""
    calls = []

    def fake(trial, variant, _device, call):
        result = call()
        calls.append(variant)
        rank = [entry.variant for entry in trial._entries].index(variant)
        trial.add(variant, {0: 4e-4, 1: 3e-4, 2: 1e-4}.get(rank, 5e-4))
        return result

    monkeypatch.setattr(Trial, "timed", fake)
    return calls


def new_layer(**settings):
    torch.manual_seed(0)
    return MPOLinear(SPEC.in_features, SPEC.out_features, spec=SPEC).set_execution(**settings)


def entries(count=3):
    return plan(SPEC, ROWS).considered[:count]


@torch.no_grad()
@pytest.mark.parametrize("cache", [False, True])
def test_real_calls_find_the_fastest_plan(timed, cache):
    layer, x = new_layer(cache=cache), torch.randn(ROWS, SPEC.in_features)
    predicted = layer.plan(ROWS)[0]
    expected = new_layer(cache=cache, autotune=False)(x)
    for _ in range(10):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    settled = layer.plan(ROWS)[0]
    assert len(timed) <= 10
    assert len(set(timed)) >= 3
    assert settled.chosen == predicted.considered[2].variant
    assert settled.measured_seconds == 1e-4
    assert "in real calls" in str(settled)
    count = len(timed)
    layer(x)
    assert len(timed) == count, "a settled layer is not timed"


@torch.no_grad()
def test_a_settled_layer_is_bound_and_keeps_the_matrices_of_its_plan_alone(timed):
    layer, x = new_layer(cache=True), torch.randn(ROWS, SPEC.in_features)
    for _ in range(12):
        layer(x)
    assert timed
    runner = layer._runners[0]
    assert len(runner._matrices.all()) == 1
    layer.cores[0][0].mul_(2.0)
    dense = layer.to_linear()
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_layers_of_one_spec_share_their_trial_and_later_processes_its_result(timed):
    first, second, x = new_layer(), new_layer(), torch.randn(ROWS, SPEC.in_features)
    for _ in range(10):
        first(x)
    count = len(timed)
    second(x)
    assert len(timed) == count
    assert second.plan(ROWS)[0].chosen == first.plan(ROWS)[0].chosen
    # As in a new process: nothing is known but the file.
    trials._trial_of.cache_clear()
    STORE._path = None
    third = new_layer()
    assert third.plan(ROWS)[0].chosen == first.plan(ROWS)[0].chosen
    assert third.plan(ROWS)[0].measured_seconds == 1e-4
    third(x)
    assert len(timed) == count


@torch.no_grad()
def test_a_damaged_record_is_measured_again(timed):
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    for _ in range(10):
        layer(x)
    (key,) = STORE._plans
    assert key.endswith("|calls")
    for record in ({}, {"timed": []}, {"timed": [{"groups": "x"}]}, None, {"timed": [], "dense": -1.0}):
        STORE._plans[key] = record
        trials._trial_of.cache_clear()
        count = len(timed)
        new_layer()(x)
        assert len(timed) == count + 1


@torch.no_grad()
def test_a_plan_that_autotuning_measured_is_taken(timed):
    x = torch.randn(ROWS, SPEC.in_features)
    tuned = new_layer(autotune=True)
    tuned(x)
    layer = new_layer()
    layer(x)
    assert not timed
    assert layer.plan(ROWS)[0].chosen == tuned.plan(ROWS)[0].chosen


@torch.no_grad()
def test_other_numbers_of_rows_follow_the_prediction_and_are_not_timed(timed):
    layer = new_layer()
    predicted = layer.plan(ROWS)[0].chosen
    layer(torch.randn(ROWS, SPEC.in_features))
    for rows in range(300, 320):
        layer(torch.randn(rows, SPEC.in_features))
    assert timed == [predicted]


def test_only_calls_without_gradients_are_tried(timed):
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    for _ in range(5):
        layer(x)
    assert not timed
    with torch.inference_mode():
        layer(x)
    assert len(timed) == 1


@torch.no_grad()
@pytest.mark.parametrize("way", ["autotune", "predicted", "deterministic", "processes", "small", "meta"])
def test_nothing_is_tried_where_equal_calls_must_be_equal(timed, monkeypatch, way):
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    if way == "autotune":
        layer.set_execution(autotune=False)
    if way == "processes":
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    if way == "small":
        x = x[:1]
    if way == "meta":
        layer, x = layer.to("meta"), x.to("meta")
    if way == "deterministic":
        torch.use_deterministic_algorithms(True)
    try:
        if way == "predicted":
            with predicted_plans():
                results = [layer(x) for _ in range(4)]
        else:
            results = [layer(x) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert not timed
    if way != "meta":
        assert all(torch.equal(result, results[0]) for result in results)


@torch.no_grad()
def test_a_trial_waits_where_equal_calls_must_be_equal(timed):
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    layer(x)
    with predicted_plans():
        a, b = layer(x), layer(x)
    assert len(timed) == 1
    assert torch.equal(a, b)
    layer(x)
    assert len(timed) == 2


@torch.no_grad()
@pytest.mark.parametrize("cache", [False, True])
def test_a_settled_layer_follows_the_prediction_where_a_new_process_would(timed, cache):
    x = torch.randn(ROWS, SPEC.in_features)
    with predicted_plans():
        expected = new_layer(cache=cache)(x)
    layer = new_layer(cache=cache)
    while (
        layer(x) is not None
        and trials.trial_of(
            SPEC, ROWS, memory="fast" if cache else "compact", setting=setting_of(x.dtype, x.device)
        ).settled
        is None
    ):
        pass
    for _ in range(3):  # bound to the shape by now
        own = layer(x)
    settled = layer.plan(ROWS, training=False)[0]
    with predicted_plans(), predicted_plans():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected), "bound calls follow it too"
        assert cache or layer.plan(ROWS, training=False)[0].chosen != settled.chosen
    assert torch.equal(layer(x), own)
    assert layer.plan(ROWS, training=False)[0].chosen == settled.chosen
    calls = len(timed)
    layer(x)
    assert len(timed) == calls, "nothing is tried again"
    assert not cache or len(layer._runners[0]._matrices.all()) <= 1


@torch.no_grad()
def test_copies_and_pickles_keep_the_setting():
    for autotune in (None, True, False):
        layer = new_layer(autotune=autotune)
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert copied._runners[0].autotune is autotune


def test_a_model_takes_the_setting():
    model = torch.nn.Sequential(new_layer(), new_layer())
    for autotune in (None, True, False):
        set_execution(model, autotune=autotune)
        assert [layer._runners[0].autotune for layer in model] == [autotune] * 2


@torch.no_grad()
def test_a_folder_that_is_not_writable_goes_unnoticed(timed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            layer(x)
    assert layer.plan(ROWS)[0].measured_seconds == 1e-4


@torch.no_grad()
def test_a_call_that_fails_is_not_waited_for(monkeypatch):
    layer, x = new_layer(), torch.randn(ROWS, SPEC.in_features)
    layer(x)
    with pytest.raises(RuntimeError):
        layer(x.to(torch.complex64))
    real, failures = Trial.turn, []

    def failing(self, rows):
        variant = real(self, rows)
        if variant is not None and not failures:
            failures.append(variant)
            with pytest.raises(RuntimeError, match="on purpose"):
                self.timed(variant, torch.device("cpu"), lambda: (_ for _ in ()).throw(RuntimeError("on purpose")))
            return real(self, rows)
        return variant

    monkeypatch.setattr(Trial, "turn", failing)
    for _ in range(12):
        layer(x)
    assert failures
    assert layer.plan(ROWS)[0].measured_seconds is not None


def settle(trial, seconds, rows=ROWS):
    """The variants of the calls of a trial, whose times are those of ``seconds``, by rank."""
    calls = []
    ranks = [entry.variant for entry in trial._entries]
    while (variant := trial.turn(rows)) is not None:
        calls.append(ranks.index(variant))
        trial.add(variant, seconds[calls[-1]])
        assert len(calls) < 50
    return calls


@pytest.mark.parametrize(
    ("seconds", "calls", "chosen"),
    [
        ([1.0, 1.2, 1.3], [0, 1, 2, 0, 1, 2, 0, 1, 0, 1], 0),
        ([1.0, 0.9, 1.3], [0, 1, 2, 0, 1, 2, 0, 1, 0, 1], 1),
        ([1.0, 3.0, 4.0], [0, 1, 2], 0),  # nothing comes near the predicted plan
        ([4.0, 3.0, 1.0], [0, 1, 2], 2),
        ([1.0, 2.0, 1.1], [0, 1, 2, 0, 1, 2, 0, 2, 0, 2], 0),
        ([1.0, 0.99, 0.98], [0, 1, 2, 0, 1, 2, 0, 1, 2], 0),  # times scatter, so the predicted plan stays
    ],
)
def test_the_order_of_calls_and_the_choice(seconds, calls, chosen):
    settled = []
    trial = Trial(plan(SPEC, ROWS), entries(), settle=settled.append)
    assert settle(trial, seconds) == calls
    assert trial.settled.chosen == entries()[chosen].variant
    assert settled == [trial.settled]
    others = sorted(seconds[:chosen] + seconds[chosen + 1 :])
    assert [entry.measured for entry in trial.settled.considered[:3]] == [seconds[chosen], *others]


def test_the_shortest_call_counts():
    trial = Trial(plan(SPEC, ROWS), entries(2))
    times = iter([5.0, 6.0, 4.5, 3.0])
    while (variant := trial.turn(ROWS)) is not None:
        trial.add(variant, next(times))
    assert trial.settled.chosen == entries()[1].variant


def test_calls_of_an_accelerator_are_timed_by_events(monkeypatch):
    """No accelerator is here: events of our own, of which each ends when the test says so."""
    ended, clock = [], iter(range(1, 100))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "the stream of cuda"
            self.at = next(clock)

        def query(self):
            return self in ended

        def elapsed_time(self, other):
            return 1e3 * (other.at - self.at)

    module = SimpleNamespace(
        Event=Event, device=lambda _: nullcontext(), current_stream=lambda device: f"the stream of {device}"
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    trial, result = Trial(plan(SPEC, ROWS), entries(2)), torch.zeros(1)
    rounds = 0
    while trial.settled is None:
        assert rounds < 10
        under_way = 0
        while (variant := trial.turn(ROWS)) is not None:
            assert trial.timed(variant, torch.device("cuda"), lambda: result) is result
            under_way += 1
        assert under_way in (0, 2), "nothing is known, nor begun, as long as calls are under way"
        rounds += under_way > 0
        ended += [last for _, _, last in trial._running]
    assert rounds == 4
    assert trial.settled.measured_seconds == 1.0


def test_threads_share_a_trial():
    trial, errors = Trial(plan(SPEC, ROWS), entries()), []

    def work():
        try:
            for _ in range(200):
                variant = trial.turn(ROWS)
                if variant is not None:
                    trial.add(variant, 1e-3)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert trial.settled is not None


def test_where_calls_may_alternate():
    assert may_try("cpu")
    assert may_try("cuda")
    assert not may_try("mps")
