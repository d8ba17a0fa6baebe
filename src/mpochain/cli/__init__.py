"""Command line, one file per subcommand: results on stdout, log and progress on stderr."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        # Imported here, so that Ctrl-C during the imports ends the program without a traceback.
        from mpochain.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
