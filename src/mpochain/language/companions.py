"""Files of a model's folder besides its weights, configuration and tokenizer, such as those of its image processor.

They are kept when a model is compressed, finetuned or converted. Code is not: nothing that is kept can run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from mpochain.errors import CheckpointError
from mpochain.system.files import write_bytes
from mpochain.system.reading import read_bytes

__all__ = ["read_companions", "write_companions"]

logger = logging.getLogger(__name__)

# Settings of processors, prompt templates, vocabularies, the model card and the licence.
_KEPT = re.compile(r"[^.].*\.(json|jinja|txt|md|model|yaml)|(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)[\w.-]*", re.I)
# Written from the model or the tokenizer itself, or about weights that are not kept.
_OTHERS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|trainer_state)\.json|"
    r"adapter_.*|.*\.index\.json"
)
_LONGEST = 16 << 20


def read_companions(folder: Path) -> dict[str, bytes]:
    """Read the files of a model's folder that belong to it and that neither model nor tokenizer writes.

    Files over 16 MiB are left out with a warning, since they are no settings.

    Raises:
        CheckpointError: a file cannot be read.

    Example:
        >>> read_companions(Path("no/such/folder"))
        {}
    """
    companions: dict[str, bytes] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _KEPT.fullmatch(file.name) or _OTHERS.fullmatch(file.name) or not file.is_file():
            continue
        try:
            if file.stat().st_size > _LONGEST:
                logger.warning("%s is not kept with the model, because it is larger than 16 MiB", file)
            else:
                companions[file.name] = read_bytes(file, _LONGEST)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    return companions


def write_companions(companions: Mapping[str, bytes], folder: Path) -> None:
    """Write files of a model to a folder; those that are there, such as the tokenizer's, stay as they are.

    Raises:
        OutputError: a file cannot be written.
    """
    for name, data in companions.items():
        if not (folder / name).exists():
            write_bytes(folder / name, data)
