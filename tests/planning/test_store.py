"""Store of measurements: what it holds survives the process, and invalid files are read as empty."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpochain import ChainSpec, MPOError, MPOLinear, plan
from mpochain.planning import Machine, Setting, measured_machine
from mpochain.planning.store import STORE, Store

SLOW = Machine(gemm_rate=1e9, measured=True)
HERE = Setting("float32", threads=2)


def test_the_next_process_reads_what_this_one_stored():
    Store().add_machine(HERE, SLOW)
    Store().add_decision("key", {"seconds": 1.0})
    again = Store()
    assert again.machine(HERE) == SLOW
    assert again.decision("key") == {"seconds": 1.0}
    assert again.machine(Setting("float32", threads=1)) == Machine()
    assert again.machine(Setting("bfloat16", threads=2)) == Machine(element_bytes=2)
    assert again.decision("another key") is None


def test_entries_of_another_process_are_not_lost():
    first, second = Store(), Store()
    first.add_decision("a", {"seconds": 1.0})
    second.add_decision("b", {"seconds": 2.0})
    assert Store().decision("a")
    assert Store().decision("b")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, as torch takes seconds to import")
def test_no_entry_of_many_processes_is_lost():
    children = []
    for process in range(4):
        child = os.fork()
        if child == 0:
            store = Store()
            for entry in range(10):
                store.add_decision(f"{process}-{entry}", {"seconds": 1.0})
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(json.loads(Store().path.read_text())["plans"]) == 40
    assert [file.name for file in Store().path.parent.iterdir()] == [Store().path.name]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"environment": {}}', "\x00\xff", "[" * 100_000, '{"environment": 1, "machines": 2}'],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(content):
    store = Store()
    store.path.parent.mkdir(parents=True)
    store.path.write_text(content, encoding="utf-8")
    assert store.machine(HERE) == Machine()
    store.add_machine(HERE, SLOW)
    assert Store().machine(HERE) == SLOW


@pytest.mark.parametrize("key", ["format", "processor", "cpus", "torch", "mpochain"])
def test_a_file_of_another_machine_or_version_is_ignored(key):
    store = Store()
    store.add_machine(HERE, SLOW)
    content = json.loads(store.path.read_text())
    content["environment"][key] = "another"
    store.path.write_text(json.dumps(content))
    assert Store().machine(HERE) == Machine()


@pytest.mark.parametrize("machine", [Machine(), SLOW])
def test_constants_come_back_as_they_were(machine):
    assert Machine.from_dict(json.loads(json.dumps(machine.as_dict()))) == machine


@given(
    st.sampled_from(sorted(Machine().as_dict())),
    st.sampled_from([None, "x", -1, 0, float("inf"), float("nan"), [], 1e300]),
)
def test_invalid_constants_are_refused(name, value):
    with pytest.raises(ValueError, match=f"the constant {name} must be"):
        Machine.from_dict({**SLOW.as_dict(), name: value})
    with pytest.raises(ValueError, match="expected the constants"):
        Machine.from_dict({name: value})


def test_an_integer_constant_has_to_be_an_integer():
    with pytest.raises(ValueError, match="cache_bytes must be a positive int, got 4194304.0"):
        Machine.from_dict({**SLOW.as_dict(), "cache_bytes": 4194304.0})


def test_an_invalid_machine_affects_no_other():
    store = Store()
    store.add_machine(HERE, SLOW)
    store.add_machine(Setting("float64"), SLOW)
    content = json.loads(store.path.read_text())
    content["machines"][str(HERE)]["gemm_rate"] = -1
    store.path.write_text(json.dumps(content))
    again = Store()
    assert again.machine(HERE) == Machine()
    assert again.machine(Setting("float64")) == SLOW


def test_a_cache_that_cannot_be_written_causes_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store = Store()
    with pytest.warns(UserWarning, match="measurements are used in this process but not stored: cannot write"):
        store.add_machine(HERE, SLOW)
    assert store.machine(HERE) == SLOW


def test_a_machine_stored_before_its_fitted_constants_were_part_of_it_has_their_defaults():
    store = Store()
    store.add_machine(HERE, SLOW)
    content = json.loads(store.path.read_text())
    record = content["machines"][str(HERE)]
    fitted = {"smallest_tile", "largest_tile_bytes", "small_states_bytes", "largest_states_bytes", "narrow_columns"}
    fitted |= {"panel_rows", "few_rows", "narrow_entry_seconds", "multiply_add_seconds", "moved_element_seconds"}
    for name in fitted | {"batching_seconds", "scatter"}:
        del record[name]
    assert len(record) == 9
    store.path.write_text(json.dumps(content))
    assert Store().machine(HERE) == SLOW


def test_plans_use_the_constants_that_they_are_passed_and_say_so():
    spec = ChainSpec((8, 16), (8, 16), 4)
    STORE.add_machine(HERE, SLOW)
    assert measured_machine(HERE) == SLOW
    assert "machine constants: defaults" in str(plan(spec, 8, setting=HERE)), "the cache is not read"
    measured = plan(spec, 8, setting=HERE, machine=measured_machine(HERE))
    assert measured.machine == SLOW
    assert "machine constants: measured here" in str(measured)


def test_layers_plan_with_measured_constants():
    layer = MPOLinear(128, 128, spec=ChainSpec((8, 16), (8, 16), 4))
    STORE.add_machine(Setting("float32", threads=torch.get_num_threads()), SLOW)
    assert layer.plan(8)[0].machine == SLOW


def test_bad_settings():
    with pytest.raises(MPOError, match="dtype must be one of float64, float32, bfloat16, float16, got 'int8'"):
        Setting("int8")
    with pytest.raises(MPOError, match="setting must be a Setting, got str"):
        plan(ChainSpec((2, 2), (2, 2), 2), 1, setting="bfloat16")
