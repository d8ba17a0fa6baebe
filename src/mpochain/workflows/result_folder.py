"""Folder of a command's result: who may write it, what it holds, and how all of it changes in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpochain.checkpoint import is_checkpoint, require_replaceable
from mpochain.errors import OutputError
from mpochain.language import LanguageModel, save_language_model
from mpochain.system.folders import folder_lock, settle
from mpochain.train.shards import shard_folders
from mpochain.workflows.former_names import FILES

__all__ = ["result_folder", "save_result"]

# Records and states of a compression, a finetuning or a distillation, with their former names. Those of an older result
# are removed in the step that writes a new one.
_RECORDS = {
    "report.json",
    "report.html",
    "finetune.json",
    "finetune.state",
    *(folder.name for state in ("finetune.state", FILES["finetune.state"]) for folder in shard_folders(Path(state))),
    "finetune.begun.json",
    "distillation.json",
    "stages",
    "unfinished",
    *FILES.values(),
}


@contextmanager
def result_folder(out: Path, *, overwrite: bool = False, unfinished: tuple[str, ...] = ()) -> Iterator[Path]:
    """Be the only command that writes to a folder, after the check that a result can be written there.

    A folder that was created, and is empty at the end, is removed.

    Args:
        out: the folder.
        overwrite: whether a compressed model in the folder may be replaced.
        unfinished: names of the state of an unfinished run; if there is one, the run may go on.

    Raises:
        OutputError: the folder holds a finished model and ``overwrite`` is false, or another model; it cannot be
            written; or another process writes to it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, result_folder(Path(folder) / "out") as out:
        ...     out.name, out.exists()
        ('out', True)
    """
    settle(out)
    with folder_lock(out):
        require_replaceable(out)
        begun = any((out / name).exists() for name in unfinished)
        if is_checkpoint(out) and not overwrite and not begun:
            raise OutputError(
                f"{out} holds a finished model, which would be overwritten; name another folder, or add overwrite=True"
            )
        yield out


def save_result(
    language: LanguageModel,
    out: Path,
    records: Callable[[Path], object],
    *,
    keep: tuple[str, ...] = (),
    largest_file: int | None = None,
) -> None:
    """Write a model, its tokenizer and its records, and remove those of an older result, all in one step.

    Args:
        language: the model.
        out: the folder.
        records: writes the records to an empty folder.
        keep: names of the state of a run that still adds to its result.
        largest_file: see :func:`mpochain.save`.

    Raises:
        OutputError: the folder cannot be written; it is then as it was.
    """
    outdated = (_RECORDS - set(keep)).__contains__
    save_language_model(language, out, records=records, outdated=outdated, largest_file=largest_file)
