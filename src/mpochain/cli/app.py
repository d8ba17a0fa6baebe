"""Command-line application: subcommands, and errors as one line with an exit status.

Exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import mpochain
from mpochain.cli.compare import compare
from mpochain.cli.compress import compress
from mpochain.cli.convert import convert
from mpochain.cli.distill import distill
from mpochain.cli.evaluate import evaluate
from mpochain.cli.finetune import finetune
from mpochain.cli.inspect import inspect
from mpochain.cli.log_lines import log_lines
from mpochain.cli.methods import CommandWithMethods, methods
from mpochain.cli.plan import plan
from mpochain.errors import ArgumentError, MPOError
from mpochain.system.interrupts import interrupts_between_steps

__all__ = ["app", "main"]

app = typer.Typer(
    name="mpochain",
    help="Compress language models by tensor networks and low rank; finetune, evaluate and compare them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mpochain {mpochain.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command(cls=CommandWithMethods)(compress)
app.command()(methods)
app.command()(finetune)
app.command()(distill)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(inspect)
app.command()(convert)
# All arguments, including --help, are passed to compress.
app.command(
    hidden=True,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(plan)


def _moved(context: typer.Context) -> None:
    """Report where a command of the PicoGPT study has moved."""
    name = context.info_name
    raise ArgumentError(f"mpochain {name} has moved; in a checkout of mpochain, run python -m studies.picogpt {name}")


for _name in ("demo", "study", "train"):
    _any = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(_name, hidden=True, context_settings=_any)(_moved)


def main() -> None:
    """Run the command line."""
    # Set before torch imports tqdm, which reads it then; bars of other libraries would clash with the command's.
    os.environ.setdefault("TQDM_DISABLE", "1")
    with log_lines():
        try:
            with interrupts_between_steps():
                app()
        except MPOError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
