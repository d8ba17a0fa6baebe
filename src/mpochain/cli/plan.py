"""``mpochain plan``: the former name of ``mpochain compress --dry-run``."""

from __future__ import annotations

import logging
from typing import Any

import typer

__all__ = ["plan"]

logger = logging.getLogger(__name__)


def plan(context: typer.Context) -> None:
    """Former name of ``mpochain compress --dry-run``."""
    logger.warning("mpochain plan is deprecated; use mpochain compress --dry-run")
    parent: Any = context.parent
    command = parent.command.get_command(parent, "compress")
    with command.make_context("compress", ["--dry-run", *context.args], parent=parent) as inner:
        command.invoke(inner)
