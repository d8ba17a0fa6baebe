"""Progress in lines, where stderr is no terminal."""

from __future__ import annotations

from mpochain.system import progress


def test_lines_have_total_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", -1.0)
    now = iter([0.0, 0.0, 0.0, 30.0, 30.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 40.0))
    with progress.counting() as counters:
        count = counters("calibration, pass 1")
        for done in (0, 9, 24):
            count(done, 24)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("calibration, pass 1: 0/24")
    assert lines[1] == "calibration, pass 1: 9/24, about 50 s left"
    assert lines[2] == "calibration, pass 1: 24/24"
