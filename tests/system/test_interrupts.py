"""Ctrl-C in runs of steps: deferred on the command line, at once everywhere else."""

# ruff: noqa: PT012 - what is interrupted, and what must not be reached, is within the block

from __future__ import annotations

import signal
import threading

import pytest

from mpochain.system.interrupts import interrupts_between_steps, run_of_steps


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_outside_of_a_run_it_is_immediate():
    with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
        press_ctrl_c()
        pytest.fail("Ctrl-C was deferred without a run of steps")


def test_within_a_run_it_waits_for_the_loop_to_ask():
    answers = []
    with pytest.raises(KeyboardInterrupt), interrupts_between_steps(), run_of_steps() as interrupted:
        answers.append(interrupted())
        press_ctrl_c()
        answers.append(interrupted())
        raise KeyboardInterrupt
    assert answers == [False, True]


def test_a_loop_that_does_not_ask_is_stopped_at_its_end():
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupts_between_steps(), run_of_steps():
        press_ctrl_c()
        reached = True
    assert reached


def test_an_error_forgets_it():
    with interrupts_between_steps():
        with pytest.raises(ZeroDivisionError), run_of_steps():
            press_ctrl_c()
            1 / 0  # noqa: B018
        with run_of_steps() as interrupted:
            assert not interrupted()


def test_within_a_run_of_a_library_it_is_immediate():
    with pytest.raises(KeyboardInterrupt), run_of_steps():
        press_ctrl_c()
        pytest.fail("Ctrl-C was deferred although no program asked for it")


def test_runs_may_be_nested():
    levels = []
    with pytest.raises(KeyboardInterrupt), interrupts_between_steps(), run_of_steps():
        with run_of_steps():
            press_ctrl_c()
            levels.append("inner")
        levels.append("outer")
    assert levels == ["inner"]


def test_the_handler_of_before_comes_back():
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGINT, mine)
    try:
        with interrupts_between_steps(), interrupts_between_steps():
            assert signal.getsignal(signal.SIGINT) is not mine
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_between_steps(), run_of_steps() as interrupted:
            press_ctrl_c()
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals():
    answers = []

    def work():
        with interrupts_between_steps(), run_of_steps() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
