"""A small model with texts, as files, for processes that torchrun starts."""

from __future__ import annotations

import pytest
from texts import prose
from tiny import write_model


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "dense")
    (folder / "valid.txt").write_text(prose(6000, seed=1))
    (folder / "test.txt").write_text(prose(3000, seed=2))
    return folder
