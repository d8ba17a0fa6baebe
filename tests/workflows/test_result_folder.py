"""Folders of results: finished ones are kept, unfinished runs go on, and two commands do not share one."""

from __future__ import annotations

import os

import pytest
from torch import nn

import mpochain as mpo
from mpochain import MPOError
from mpochain.workflows.begun import Begun
from mpochain.workflows.result_folder import result_folder


@pytest.fixture
def finished(tmp_path):
    return mpo.save(nn.Sequential(mpo.MPOLinear(8, 8, max_bond=2)), tmp_path / "out")


def test_a_finished_folder_is_not_overwritten_without_a_word(finished):
    with pytest.raises(MPOError, match=r"out holds a finished model, which would be overwritten; .*overwrite=True"):
        result_folder(finished).__enter__()
    with result_folder(finished, overwrite=True):
        pass
    (finished / "run.state").touch()
    with result_folder(finished, unfinished=("run.state",)):
        pass  # the state identifies its run
    with pytest.raises(MPOError, match="holds a finished model"):
        result_folder(finished, unfinished=("other.state",)).__enter__()


def test_another_model_is_never_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for overwrite in (False, True):
        with pytest.raises(MPOError, match="holds another model"):
            result_folder(tmp_path, overwrite=overwrite).__enter__()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the second command is a forked process")
def test_a_second_command_is_refused(tmp_path):
    with result_folder(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            try:
                result_folder(tmp_path / "out").__enter__()
            except MPOError as error:
                os._exit(3 if "another process is writing to" in str(error) and "out" in str(error) else 4)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), result_folder(tmp_path / "deep" / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_belongs_to_its_run(tmp_path):
    file = tmp_path / "begun.json"
    Begun(file, {"text": "a", "windows": 3}).keep({"before": 2.0})
    assert Begun(file, {"text": "a", "windows": 3}).kept == {"before": 2.0}
    with pytest.raises(MPOError, match=r"holds the state of another run: its text was 'a' and is now 'b'"):
        Begun(file, {"text": "b", "windows": 3})
    content = file.read_text()
    for damaged in (content[:-9], content.replace("2.0", "3.0"), "[]", "{}", content.replace("sha256", "sha255")):
        file.write_text(damaged)
        with pytest.raises(MPOError, match=r"begun\.json is damaged.*remove it to start again"):
            Begun(file, {"text": "a", "windows": 3})
