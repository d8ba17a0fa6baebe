"""Command line of the PicoGPT study: ``python -m studies.picogpt COMMAND``, run from a checkout.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys

import typer

from mpochain.errors import MPOError
from mpochain.system.interrupts import interrupts_between_steps
from studies.picogpt.commands.demo import demo
from studies.picogpt.commands.frontier import frontier
from studies.picogpt.commands.study import study
from studies.picogpt.commands.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="python -m studies.picogpt",
    help="PicoGPT, the character transformer of arXiv 2603.28534, with dense linear layers or chains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(frontier)
app.command()(study)
app.command()(train)


def _log_to_stderr() -> None:
    """Show log messages of the study and the library on stderr, one plain line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("mpochain", "studies"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)


def main() -> None:
    """Run the command line."""
    _log_to_stderr()
    try:
        with interrupts_between_steps():
            app(prog_name="python -m studies.picogpt")
    except MPOError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
