"""Scores of a language model in memory on tasks of lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpochain.errors import ArgumentError, CorpusError, MissingDependencyError, MPOError

if TYPE_CHECKING:
    from mpochain.language.source import LanguageModel

__all__ = ["TaskScore", "evaluate_tasks", "require_harness"]


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: name of the task or group.
        metric: name of the metric, such as ``acc``.
        filter: how answers are read before they are compared; ``none`` for as they are.
        value: the score.
        stderr: its standard error; None if it is not known.
        samples: number of examples; None for a group.
        fewshot: number of solved examples before each; None for a group.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    samples: int | None
    fewshot: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise MissingDependencyError("--tasks needs lm_eval; install it with: pip install 'mpochain[eval]'")


def evaluate_tasks(
    language: LanguageModel,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 1,
) -> list[TaskScore]:
    """Evaluate a model, as it is in memory, on tasks of lm-evaluation-harness.

    Args:
        language: a causal model of transformers with its tokenizer, dense or compressed.
        tasks: names of tasks or groups.
        include: folder with YAML tasks, which are then the only ones known; None for those of the harness, whose data
            it asks the Hugging Face hub for. Paths of data in a YAML file are relative to the working directory.
        limit: number of examples of each task; None for all.
        fewshot: number of solved examples before each one; None for the number that the task states.
        batch_size: examples that the model reads together.

    Raises:
        MissingDependencyError: lm_eval is not installed.
        ArgumentError: a task is not known, the model is none of transformers, or its tokenizer has no end-of-text
            token.
        CorpusError: the data of a task cannot be read, such as those of a hub that is not reachable, or they do not
            fit its description.

    Returns:
        The scores, by task.
    """
    require_harness()
    if not tasks:
        raise ArgumentError("no task is named; name some, such as --tasks arc_easy,hellaswag")
    if include is not None and not include.is_dir():
        raise ArgumentError(f"--include {include}: there is no such folder; give a folder with YAML tasks")
    if not hasattr(language.model, "config") or not hasattr(language.model, "generate"):
        raise ArgumentError(f"tasks need a model of transformers, not {type(language.model).__name__}; use --text")
    if getattr(language.tokenizer, "eos_token_id", None) is None:
        raise ArgumentError(
            "lm_eval needs a tokenizer with an end-of-text token, and the model's has none; set tokenizer.eos_token "
            "and save it to the model's folder, or use --text"
        )
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=None if include is None else str(include), include_defaults=include is None)
        _require_known(manager, tasks, include)
        try:
            manager.load(list(tasks))
        except Exception as error:  # of any package that reads data
            raise CorpusError(_unreadable(tasks, error, include)) from error
        model: Any = language.model
        harness = HFLM(pretrained=model, tokenizer=language.tokenizer, backend="causal", batch_size=batch_size)
        try:
            results = simple_evaluate(
                harness,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=fewshot,
                log_samples=False,
                bootstrap_iters=1000,
            )
        except MPOError:
            raise
        except Exception as error:  # such as that of a template in a YAML file
            raise CorpusError(
                f"lm_eval could not evaluate {', '.join(tasks)} ({_reason(error)}); if the tasks are your own, check "
                "the fields of their YAML files"
            ) from error
    return _scores(results)


def _require_known(manager: Any, tasks: Sequence[str], include: Path | None) -> None:
    known = sorted(manager.all_tasks)
    for task in tasks:
        if task in known:
            continue
        if include is not None:
            here = ", ".join(known[:10]) or "no tasks"
            raise ArgumentError(
                f"--include {include} has no task {task!r}, but {here}; a task is a YAML file with a line "
                f"'task: {task}'. Without --include, the tasks of lm_eval are known"
            )
        similar = ", ".join(get_close_matches(task, known)) or "none"
        raise ArgumentError(
            f"lm_eval has no task {task!r}; similar names: {similar}. Give --include with the folder of a YAML task of "
            "your own"
        )


def _unreadable(tasks: Sequence[str], error: Exception, include: Path | None) -> str:
    if include is None:
        remedy = (
            "the tasks of lm_eval read them from the Hugging Face hub. Where there is none, give --include with a "
            "folder of YAML tasks over local files (dataset_path: json or text), or fetch the data elsewhere and set "
            "HF_HUB_OFFLINE=1 and HF_HOME to their cache"
        )
    else:
        remedy = (
            "for local files, the YAML needs dataset_path: json (or text, csv, parquet) and dataset_kwargs: "
            "data_files, relative to the working directory; other names are asked from the Hugging Face hub. "
            "If the files are there, check the fields of their YAML descriptions"
        )
    return f"the data of {', '.join(tasks)} cannot be read ({_reason(error)}); {remedy}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _scores(results: Any) -> list[TaskScore]:
    scores = []
    for section in ("results", "groups"):
        for task, metrics in (results.get(section) or {}).items():
            for key, value in metrics.items():
                metric, _, way = key.partition(",")
                if not way or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                stderr = metrics.get(f"{metric}_stderr,{way}")
                samples = (results.get("n-samples") or {}).get(task, {}).get("effective")
                scores.append(
                    TaskScore(
                        task,
                        metric,
                        way,
                        float(value),
                        float(stderr) if isinstance(stderr, int | float) else None,
                        samples,
                        (results.get("n-shot") or {}).get(task),
                    )
                )
    return list(dict.fromkeys(scores))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave standard output to the results, and the log to errors of the harness."""
    names = ("lm_eval", "datasets", "evaluate", "absl")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
