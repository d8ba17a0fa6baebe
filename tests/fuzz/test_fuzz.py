"""Damaged and hostile files: each is read as what it holds, or refused with an error that names file and field.

The full run is ``make fuzz``; its outcomes are in ``docs/results/fuzz.json``.
"""

from __future__ import annotations

import logging

import pytest
from fuzz.run import ALLOWED, TARGETS, Suite, counted


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    logging.disable(logging.CRITICAL)
    yield Suite(tmp_path_factory.mktemp("fuzz"))
    logging.disable(logging.NOTSET)


def test_files_as_they_were_written_are_read(suite):
    """Otherwise every mutant of them would be refused for the wrong reason."""
    assert suite.pristine() == {name: {"same"} for name in TARGETS}


def test_mutants_are_read_as_what_they_hold_or_refused(suite):
    faults = []
    counts = counted(suite, "tests", range(300), lambda *fault: faults.append(fault))
    assert not faults
    assert all(set(outcomes) & {"refused", "ignored"} for outcomes in counts.values())
    assert all(set(outcomes) <= ALLOWED for outcomes in counts.values())
