"""Command-line application: subcommands, and errors as messages with an exit status.

Exit status: 0 success; 1 failure; 2 wrong usage, that is an option, a recipe or a name that cannot be meant; 130
interrupted; 141 if the reader of the output closed it.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

import mpochain
from mpochain.cli.advice import as_options, option_names
from mpochain.cli.command import command
from mpochain.cli.compare import compare
from mpochain.cli.compress import compress
from mpochain.cli.convert import convert
from mpochain.cli.cut import cut
from mpochain.cli.distill import distill
from mpochain.cli.evaluate import evaluate
from mpochain.cli.export import export
from mpochain.cli.finetune import finetune
from mpochain.cli.frontier import frontier
from mpochain.cli.inspect import inspect
from mpochain.cli.methods import CommandWithMethods, methods
from mpochain.cli.plan import plan
from mpochain.cli.plan_run import plan_run
from mpochain.cli.processes import after_others
from mpochain.cli.recipe import recipe
from mpochain.errors import ArgumentError, MPOError, RecipeError, printable
from mpochain.system.interrupts import interrupts_between_steps
from mpochain.system.log_lines import log_lines
from mpochain.system.progress import hide_progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="mpochain",
    help="Compress language models by tensor networks and low rank; finetune, evaluate and compare them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command(cls=CommandWithMethods)(command(compress))
app.command()(command(cut))
app.command()(command(methods))
app.command()(command(finetune))
app.command()(command(distill))
app.command("eval")(command(evaluate))
app.command()(command(compare))
app.command()(command(frontier))
app.command()(command(inspect))
app.command()(command(convert))
app.command()(command(export))
app.command()(command(recipe))
app.command("plan-run")(command(plan_run))
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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that lacks a character shows its code, where Python would raise an error.
            stream.reconfigure(errors="backslashreplace")
    with log_lines():
        try:
            with interrupts_between_steps():
                app(prog_name="mpochain")
        except MPOError as error:
            _fail(_in_options(str(error)), 2 if isinstance(error, ArgumentError | RecipeError) else 1)
        except MemoryError:
            _fail("memory ran out; use a smaller model, a shorter window or fewer windows", 1)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except Exception as error:  # what is left is a fault of this program
            if logging.getLogger("mpochain").isEnabledFor(logging.DEBUG):
                traceback.print_exc()
            _fail(
                f"internal error, {type(error).__name__}: {error}; please report it with what the same command prints "
                "with --verbose",
                1,
            )
        finally:
            hide_progress(False)


def _in_options(message: str) -> str:
    """An error message with the options of the running command in place of keyword arguments."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    running = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    if running is None:
        return message
    from mpochain.compression import METHODS
    from mpochain.train import FinetuneConfig

    settings = {name for method in METHODS.values() for name in type(method.settings).model_fields}
    return as_options(message, option_names(running.params), settings, FinetuneConfig.model_fields)


def _fail(message: str, status: int) -> None:
    print(f"error: {printable(after_others(message))}", file=sys.stderr)
    sys.exit(status)
