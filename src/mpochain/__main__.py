"""``python -m mpochain`` is the command ``mpochain``."""

from mpochain.cli import main

main()
