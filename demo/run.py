"""The demo: a dense model compressed, evaluated, timed and asked, and the files that show the result."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from demo.progress import showing
from mpochain.checkpoint import require_replaceable
from mpochain.language import LanguageModel, save_language_model
from mpochain.report.figures import require_matplotlib
from mpochain.system.files import require_writable
from mpochain.workflows import Compressed, Recipe, compress_by
from mpochain.workflows.report_page import write_report
from mpochain.workflows.sections import Evaluation

__all__ = ["PROMPTS", "Outcome", "command_for", "run"]

# Of no country, about which the calibration text may say something.
PROMPTS = (
    "Explain why the sky is blue.",
    "Write a short thank-you note to a colleague who helped me move house.",
    "How do bees make honey?",
)

# Seconds of each step on two idle cores of a Xeon of 2.8 GHz, estimated from the processor time of each. Reading,
# building and timing count nothing themselves: they are done when the next step begins.
_STEPS = {
    "reading the model": 12.0,
    "perplexity, dense": 20.0,
    "text, dense": 6.0,
    "calibration, pass 1": 49.0,
    "calibration, pass 2": 49.0,
    "building": 35.0,
    "perplexity, compressed": 20.0,
    "text, compressed": 6.0,
    "timing": 35.0,
    "report": 5.0,
}


@dataclass(frozen=True)
class Outcome:
    """What the demo made.

    Attributes:
        result: the compressed model and what was measured.
        model: folder with the compressed model.
        weights: bytes of the file with its weights.
        report: the HTML page.
    """

    result: Compressed
    model: Path
    weights: int
    report: Path


def run(recipe: Recipe, out: Path) -> Outcome:
    """Compress the model of a recipe, measure both models, and write ``model/``, ``report.html`` and ``report.json``.

    Args:
        recipe: with a budget, calibration, evaluation and prompts.
        out: folder for the result, made if needed.

    Raises:
        OutputError: the folder cannot be written.
        MPOError: whatever a step raises.
    """
    require_writable(out)
    model = out / "model"
    if model.exists():
        require_replaceable(model)
    require_matplotlib()
    with showing(_STEPS) as counters:
        result = compress_by(recipe, timed=True, counters=counters)
        counters("report")(0, 1)
        _save(result.language, model)
        command = command_for(recipe, model)
        _, report = write_report(out, result, command, recipe.model_dump(mode="json", exclude_none=True))
        counters("report")(1, 1)
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return Outcome(result, model, weights, report)


def _save(language: LanguageModel, folder: Path) -> None:
    """Write a compressed model in place of an earlier one; an interruption leaves the earlier one, or none."""
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder.parent) as temporary:
        partial = save_language_model(language, Path(temporary, "new"))
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        partial.rename(folder)


def command_for(recipe: Recipe, out: Path | str, *, prompts: bool = True) -> str:
    """The command of the library that does the same.

    Args:
        recipe: of the demo, or of another model.
        out: folder for the compressed model.
        prompts: whether the prompts are among the options.
    """
    words = ["mpochain", "compress", recipe.model, "--budget", str(recipe.budget)]
    if recipe.calibration is not None:
        words += ["--calibration", str(recipe.calibration.text)]
        words += ["--calibration-windows", str(recipe.calibration.windows)]
    if recipe.evaluation is not None:
        words += ["--evaluate", str(recipe.evaluation.text)]
        words += ["--evaluate-windows", str(recipe.evaluation.windows)]
        if recipe.evaluation.window != Evaluation.model_fields["window"].default:
            words += ["--window", str(recipe.evaluation.window)]
    if prompts:
        for prompt in recipe.prompts:
            words += ["--prompt", prompt]
    return shlex.join([*words, "--out", str(out)])
