"""A part of the kill suite: kills at many operations on files, errors of the disk, and two writers."""

from __future__ import annotations

import os

import pytest
from kill.faults import ERRORS, Fault
from kill.suite import Suite, may_mount

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked, as importing torch takes seconds"
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return Suite(tmp_path_factory.mktemp("kills"))


def spread(operations: int, number: int) -> list[int]:
    """Operations from the first to the last."""
    return sorted({round(k * (operations - 1) / (number - 1)) for k in range(number)})


@pytest.mark.parametrize(
    ("name", "number", "exchange"),
    [
        ("save", 8, True),
        ("save", 8, False),
        ("save-first", 3, True),
        ("save-language", 2, True),
        ("convert", 2, True),
        ("train", 4, True),
    ],
)
def test_a_kill_leaves_the_old_or_the_new_result(suite, name, number, exchange):
    # Moving files one by one takes more operations than exchanging folders; a kill after the last one does not happen.
    operations = suite.expected(name).operations + (0 if exchange else 15)
    faults = [Fault(at, torn=at % 2 == 0, exchange=exchange) for at in spread(operations, number)]
    left = [suite.trial(name, fault) for fault in faults]
    assert left[0] == "old"
    assert left[-1] == "new"


def test_a_killed_finetuning_goes_on_to_the_bit(suite):
    suite.trial("finetune", Fault(suite.expected("finetune").operations // 2))


def test_an_error_of_the_disk_is_refused_with_the_old_result_intact(suite):
    operations = suite.expected("save").operations
    for at, error in zip(spread(operations, len(ERRORS)), ERRORS, strict=True):
        suite.trial("save", Fault(at, error=error))


def test_of_two_writers_one_wins_whole(suite):
    for wait in (0.0, 0.0, 0.02):
        suite.writers("save", wait)


def test_a_full_disk(suite):
    if not may_mount(suite.folder):
        pytest.skip("only the administrator may mount a small disk")
    assert suite.full_disk("save", 4) == "old"
    assert suite.full_disk("save", 100) == "new"
