"""The command line: one file per subcommand. Data on stdout, progress and logs on stderr."""

from mpochain.cli.app import main

__all__ = ["main"]
