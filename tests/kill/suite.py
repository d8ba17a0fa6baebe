"""Processes that are killed, that meet a full disk, or that write to one folder together: what they leave.

``make kill`` runs 200 kills and more; ``PYTHONPATH=tests python -m kill.suite --number 200 --seed 0 --out FILE`` writes
the counts as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kill.faults import ERRORS, Fault, Outcome, run
from kill.scenarios import SCENARIOS, Scenario, parts, write_inputs

import mpochain as mpo
from mpochain.report import provenance
from mpochain.system.folders import settle

__all__ = ["Suite", "main"]


class Suite:
    """Runs trials in a folder, and keeps what each piece of work yields when nothing happens.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "inputs").mkdir()
        self.inputs = write_inputs(folder / "inputs")
        self._expected: dict[str, Expected] = {}

    def expected(self, name: str) -> Expected:
        """The older and the newer result of a scenario, and the operations on files in between."""
        if name not in self._expected:
            scenario = SCENARIOS[name]
            before, after = self.folder / f"{name}-old", self.folder / f"{name}-new"
            before.mkdir()
            self._finish(scenario, scenario.old, before)
            shutil.copytree(before, after)
            outcome = self._finish(scenario, scenario.new, after)
            self._expected[name] = Expected(before, parts(before), parts(after), _names(after), outcome.operations)
        return self._expected[name]

    def _finish(self, scenario: Scenario, work: object, folder: Path) -> Outcome:
        outcome = run(lambda trial: work(self.inputs, trial), folder, Fault())
        assert isinstance(outcome, Outcome)
        if outcome.how != "finished":
            raise AssertionError(f"without any fault: {outcome}")
        return outcome

    def trial(self, name: str, fault: Fault) -> str:
        """Let a fault happen, check what is left, and finish the work.

        Returns:
            What was left: ``"old"``, ``"new"`` or ``"unfinished"`` (a model whose measurements are still to come).

        Raises:
            AssertionError: anything else was left; the message says what.
        """
        expected, scenario = self.expected(name), SCENARIOS[name]
        with self._copy(expected.folder) as trial:
            outcome = run(lambda folder: scenario.new(self.inputs, folder), trial, fault)
            assert isinstance(outcome, Outcome)
            wanted = ("finished", "refused") if fault.error else ("finished", "killed")
            if outcome.how not in wanted:
                raise AssertionError(f"{name}, {fault}: {outcome}")
            if outcome.how == "refused" and "cannot" not in outcome.message:
                raise AssertionError(f"{name}, {fault}: the message does not say what is wrong: {outcome.message}")
            left = self._left(name, trial, fault)
            again = run(lambda folder: scenario.new(self.inputs, folder), trial, Fault(exchange=fault.exchange))
            if again.how != "finished" or parts(trial) != expected.new:
                differences = _differences(parts(trial), expected.new)
                raise AssertionError(f"{name}, {fault}: {left} was left, but the next run: {again}, {differences}")
            strays = _names(trial) ^ expected.names
            if strays:
                raise AssertionError(f"{name}, {fault}: after the next run there are other files: {sorted(strays)}")
            return left

    def _left(self, name: str, trial: Path, fault: Fault) -> str:
        expected = self.expected(name)
        content = parts(trial)
        if (trial / "out" / ".mpochain.committed").exists():
            settle(trial / "out")
            content = parts(trial)
        if content in (expected.old, expected.new):
            left = "old" if content == expected.old else "new"
        elif {**content, "report.json": "", "report.html": ""} == {
            **expected.new,
            "report.json": "",
            "report.html": "",
        }:
            left = "unfinished"
        else:
            raise AssertionError(
                f"{name}, {fault}: neither old nor new was left: {_differences(content, expected.old)}; "
                f"{_differences(content, expected.new)}"
            )
        if "config.json" in content and name != "convert" and "tokenizer.json" in content:
            mpo.load(trial / "out")
        return left

    def writers(self, name: str, wait: float) -> str:
        """Let two processes write to one folder, and check that one of them won whole.

        Args:
            name: a scenario, whose older and newer work are done together.
            wait: seconds between their starts.

        Returns:
            How the second one ended: ``"finished"`` or ``"refused"``.
        """
        expected, scenario = self.expected(name), SCENARIOS[name]
        with self._copy(self.folder / "inputs", empty=True) as trial:
            works = (scenario.old, scenario.new)
            children = []
            for work in works:
                children.append(run(lambda folder, work=work: work(self.inputs, folder), trial, Fault(), wait=False))
                time.sleep(wait)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            content = parts(trial)
            whole = [expected.old, expected.new]
            if not set(codes) <= {0, 3} or content not in whole or 0 not in codes:
                raise AssertionError(
                    f"two writers of {name}, {wait} s apart: codes {codes}, {_differences(content, whole[1])}"
                )
            strays = [place for place in _names(trial) if "/." in place or place.startswith(".")]
            if strays:
                raise AssertionError(f"two writers of {name}, {wait} s apart: strays {strays}")
            return "refused" if 3 in codes else "finished"

    def full_disk(self, name: str, kilobytes: int) -> str:
        """Write to a small disk, and check that the older result is intact; then make room."""
        expected, scenario = self.expected(name), SCENARIOS[name]
        with small_disk(self.folder / "disk", 64 << 10) as disk:
            trial = disk / "trial"
            shutil.copytree(expected.folder, trial)
            filler = disk / "filler"
            free = shutil.disk_usage(disk).free
            filler.write_bytes(bytes(max(0, free - (kilobytes << 10))))
            outcome = run(lambda folder: scenario.new(self.inputs, folder), trial, Fault())
            if outcome.how not in ("finished", "refused"):
                raise AssertionError(f"full disk, {name}, {kilobytes} kB: {outcome}")
            if outcome.how == "refused" and not (
                "No space left" in outcome.message and "cannot write" in outcome.message
            ):
                raise AssertionError(f"full disk, {name}, {kilobytes} kB: {outcome.message}")
            left = self._left(name, trial, Fault())
            filler.unlink()
            again = run(lambda folder: scenario.new(self.inputs, folder), trial, Fault())
            if again.how != "finished" or parts(trial) != expected.new or _names(trial) != expected.names:
                raise AssertionError(f"full disk, {name}, {kilobytes} kB: {left} was left, but the next run: {again}")
            return left

    @contextmanager
    def _copy(self, folder: Path, *, empty: bool = False) -> Iterator[Path]:
        trial = self.folder / "trials" / "one"
        trial.parent.mkdir(exist_ok=True)
        shutil.rmtree(trial, ignore_errors=True)
        if empty:
            trial.mkdir()
        else:
            shutil.copytree(folder, trial)
        yield trial


class Expected:
    """What a scenario has and yields: its older result and its parts, the new parts, all names, the operations."""

    def __init__(
        self, folder: Path, old: dict[str, str], new: dict[str, str], names: set[str], operations: int
    ) -> None:
        self.folder, self.old, self.new, self.names, self.operations = folder, old, new, names, operations


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system in memory; only the administrator may."""
    place.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True, capture_output=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a small disk."""
    try:
        with small_disk(folder / "tried", 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def trials(suite: Suite, number: int, seed: int, scenarios: list[str]) -> Iterator[tuple[str, object]]:
    """The kind and the work of each trial: most of them kills, the rest errors, full disks and two writers."""
    rng = random.Random(seed)
    mounts = may_mount(suite.folder)
    for index in range(number):
        name = scenarios[index % len(scenarios)]
        operations = suite.expected(name).operations
        fault = Fault(rng.randrange(operations), torn=rng.random() < 0.5, exchange=rng.random() < 0.7)
        yield "kill", (name, fault)
        name = scenarios[index // 3 % len(scenarios)]
        operations = suite.expected(name).operations
        if index % 3 == 0:
            yield "kill at any time", (name, Fault(seconds=rng.uniform(0.0, 1.0)))
            yield "error", (name, Fault(rng.randrange(operations), error=rng.choice(ERRORS)))
        if index % 5 == 0:
            yield (
                "two writers",
                (rng.choice(["save", "save-language", "compress", "finetune"]), rng.choice([0.0, 0.01, 0.1])),
            )
        name = scenarios[index // 10 % len(scenarios)]
        if mounts and index % 10 == 0 and name != "train":
            yield "full disk", (name, rng.choice([4, 16, 40, 100]))


def _names(folder: Path) -> set[str]:
    return {place.relative_to(folder).as_posix() for place in folder.rglob("*")}


def _differences(content: dict[str, str], wanted: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (content.get(name), wanted.get(name))
        for name in sorted({*content, *wanted})
        if content.get(name) != wanted.get(name)
    }


def main(arguments: list[str] | None = None) -> int:
    """Run trials and write their counts.

    Returns:
        1 if a trial left anything that is neither right nor refused, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="kills at an operation on a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), help="scenarios")
    options = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    counts: dict[str, Counter[str]] = {}
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mpochain-kill-") as folder:
        os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")  # noqa: PTH118
        suite = Suite(Path(folder))
        run_trial = {
            "kill": suite.trial,
            "kill at any time": suite.trial,
            "error": suite.trial,
            "two writers": suite.writers,
            "full disk": suite.full_disk,
        }
        for kind, what in trials(suite, options.number, options.seed, options.only):
            try:
                left = run_trial[kind](*what)
            except AssertionError as error:
                left = "failed"
                failures.append(f"{kind}: {error}")
                print(failures[-1], flush=True)
            counts.setdefault(kind, Counter())[left] += 1
            counts.setdefault(f"of {what[0]}", Counter())[kind] += 1
            done = sum(counter.total() for name, counter in counts.items() if not name.startswith("of "))
            print(f"{done} trials, {time.monotonic() - began:.0f} s: {kind} of {what}: {left}", flush=True)
    record = {
        "number": options.number,
        "seed": options.seed,
        "scenarios": options.only,
        "seconds": round(time.monotonic() - began),
        "outcomes": {name: dict(counter) for name, counter in counts.items()},
        "failures": failures,
        "provenance": provenance(threads=1, commit=True),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["outcomes"], indent=1))
    return int(bool(failures))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
