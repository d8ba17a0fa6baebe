"""``mpochain eval``: perplexity of a language model on texts, and its scores on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mpochain.cli.options import Device, Dtype, EvaluationWindows, Json, count_or_all, print_json, quiet_transformers
from mpochain.errors import ArgumentError, printable
from mpochain.system.progress import counting

if TYPE_CHECKING:
    from mpochain.language import TaskScore

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="Dense or compressed model: a folder, a .gguf file, or a name on the Hugging Face hub."),
    ],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to measure perplexity on.")] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="Further UTF-8 text, of another kind than --text; repeatable.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens per window.", min=2)] = 512,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the starts of windows; by default the window.", min=1)
    ] = None,
    windows: EvaluationWindows = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Tasks of lm-evaluation-harness; needs mpochain\\[eval].")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder with YAML tasks over local data, in place of those of the harness.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task; by default all.", min=1)] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Solved examples before each one; by default as the task states.", min=0)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples of a task that are read together.", min=1)] = 1,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Print the perplexity of a model on a text with the number of tokens, its scores on tasks, or both."""
    from mpochain.language import evaluate_tasks, perplexity, read_tokens
    from mpochain.language.tasks import require_harness
    from mpochain.language.text import counted
    from mpochain.workflows.checks import require_found
    from mpochain.workflows.inputs import read_model

    names = tuple(filter(None, (name.strip() for name in (tasks or "").split(","))))
    _require_consistent(text, also, names, include=include, limit=limit, fewshot=fewshot)
    texts = [file for file in (text, *(also or ())) if file is not None]
    named = {"--text" if file == text else f"--also {file}": file for file in texts}
    require_found({"model": model}, named)
    if names:
        require_harness()
    measured: list[dict[str, Any]] = []
    scores: list[TaskScore] = []
    with quiet_transformers(), counting() as counters:
        language = read_model(model, dtype=dtype or "auto", device=device or "cpu")
        for file in texts:
            tokens = read_tokens(file, language.tokenizer)
            used, every = counted(len(tokens), window, _count(windows), stride)
            progress = counters("evaluation windows" if len(texts) == 1 else f"evaluation windows, {file.name}")
            result = perplexity(language.model, tokens, window=window, stride=stride, count=used, progress=progress)
            measured.append({"text": str(file), **result.as_dict(), "windows_of_text": every})
        if names:
            scores = evaluate_tasks(
                language, names, include=include, limit=limit, fewshot=fewshot, batch_size=batch_size
            )
    if as_json:
        first = measured[0] if measured else {}
        rest = {"also": measured[1:]} if also else {}
        of_tasks = {"tasks": [score.as_dict() for score in scores]} if names else {}
        print_json({"model": model, **first, **rest, **of_tasks})
        return
    for record in measured:
        where = "" if len(measured) == 1 else f"{record['text']}: "
        print(
            printable(
                f"{where}perplexity {record['perplexity']:.3f} ({record['loss']:.4f} nats per token) on "
                f"{record['tokens']:,} tokens, {record['windows']:,} of {record['windows_of_text']:,} windows of "
                f"{record['window']}, stride {record['stride']}"
            )
        )
    for score in scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        way = "" if score.filter == "none" else f" ({score.filter})"
        of = "" if score.samples is None else f" on {score.samples:,} examples, {score.fewshot or 0} solved before each"
        print(printable(f"{score.task}: {score.metric}{way} {score.value:.4f}{error}{of}"))


def _require_consistent(text: Path | None, also: list[Path] | None, names: tuple[str, ...], **of_tasks: Any) -> None:
    if text is None and not names:
        raise ArgumentError("there is nothing to measure; give --text FILE, --tasks NAME,... or both")
    if also and text is None:
        raise ArgumentError("--also adds texts to that of --text; give --text too")
    options = [f"--{name}" for name, value in of_tasks.items() if value is not None]
    if options and not names:
        raise ArgumentError(f"{', '.join(options)} is for tasks; name them by --tasks, or leave it out")


def _count(windows: str | None) -> int | Literal["all"] | None:
    count = count_or_all(windows)
    if count is None or count == "all":
        return "all" if count else None
    if not isinstance(count, int) or count < 1:
        raise ArgumentError(f"--windows {windows}: expected a number of at least 1, or all")
    return count
