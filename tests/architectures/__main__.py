"""``python -m architectures``: check all classes, or write the page of the results."""

from __future__ import annotations

import argparse

from architectures.page import write_page
from architectures.run import run

parser = argparse.ArgumentParser(prog="architectures", description=__doc__)
parser.add_argument(
    "names", nargs="*", help="classes of transformers to check again; by default all without an outcome of this commit"
)
parser.add_argument("--keep", action="store_true", help="keep the outcomes of other commits")
parser.add_argument("--page", action="store_true", help="only write the page")
arguments = parser.parse_args()
if not arguments.page:
    run(arguments.names, keep=arguments.keep)
write_page()
