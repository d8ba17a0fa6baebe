"""Command line, one file per subcommand: results on stdout, log and progress on stderr."""

from mpochain.cli.app import main

__all__ = ["main"]
