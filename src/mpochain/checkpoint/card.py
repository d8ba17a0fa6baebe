"""Model card of a compressed model, ``README.md``: what it was, how it was compressed, its size, and how to load it.

How a model was compressed is text that follows the model: it is remembered when the model is compressed, written into
the card, read from there when the folder is loaded, and written again. Sizes are those of the model that is saved.
A card without the comments around that text was written by someone else and stays as it is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.surgery.finding import compressed_layers
from mpochain.system.files import write_bytes
from mpochain.system.reading import file_within, read_bytes
from mpochain.system.sizes import megabytes
from mpochain.wording import counted

__all__ = ["CARD", "Origin", "origin_of", "read_origin", "remember_origin", "write_card"]

CARD = "README.md"
# Comments around the text that follows the model; a file without them is not one of this library's.
_BEGIN, _END = "<!-- mpochain: how this model was compressed -->", "<!-- mpochain: end -->"
_BASE = re.compile(r'^base_model: ("[^"\\]{1,200}")$', re.MULTILINE)
_ATTRIBUTE = "_mpochain_origin"
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where a compressed model comes from.

    Attributes:
        base: name of the model that was compressed, on the hub or of its folder; None if it is not known.
        text: how it was compressed, as Markdown; empty if it is not known.
    """

    base: str | None = None
    text: str = ""


def remember_origin(model: nn.Module, origin: Origin) -> None:
    """Remember where a model comes from, for its model card.

    Args:
        model: only an attribute is added.
        origin: base and text.

    Example:
        >>> model = nn.Sequential()
        >>> remember_origin(model, Origin("org/model", "Compressed to 60%."))
        >>> origin_of(model).base
        'org/model'
    """
    object.__setattr__(model, _ATTRIBUTE, origin)


def origin_of(model: nn.Module) -> Origin:
    """Where a model comes from; of a model of transformers that was not compressed yet, itself is the base."""
    origin = vars(model).get(_ATTRIBUTE)
    return origin if isinstance(origin, Origin) else Origin(_own_name(model))


def read_origin(folder: Path) -> Origin:
    """Where the model of a folder comes from, by the card that this library wrote there.

    Example:
        >>> read_origin(Path("no/such/folder"))
        Origin(base=None, text='')
    """
    card = _own_card(folder)
    if card is None:
        return Origin()
    base = _BASE.search(card.partition(_BEGIN)[0])
    return Origin(None if base is None else base[1].strip('"'), card.partition(_BEGIN)[2].partition(_END)[0].strip())


def write_card(model: nn.Module, new: Path, folder: Path) -> None:
    """Write the card of a model, unless its folder has a card that someone else wrote.

    Args:
        model: the model.
        new: folder to write to, such as one of ``replaced_together``.
        folder: folder that the files will be in.

    Raises:
        OutputError: the file cannot be written.
    """
    if (new / CARD).exists() or ((folder / CARD).exists() and _own_card(folder) is None):
        return
    write_bytes(new / CARD, _card(model).encode())


def _own_card(folder: Path) -> str | None:
    """The text of a card that this library wrote; None for any other."""
    try:
        text = read_bytes(file_within(folder, CARD), _LONGEST).decode()
    except (OSError, ValueError):
        return None
    return text if _BEGIN in text and _END in text else None


def _card(model: nn.Module) -> str:
    origin = origin_of(model)
    base = origin.base
    header = ["library_name: transformers", "tags: [mpochain, compressed]"]
    header += [] if base is None else [f"base_model: {json.dumps(base)}", "base_model_relation: quantized"]
    title = f"# {type(model).__name__ if base is None else base.rpartition('/')[2]}, compressed with mpochain"
    text = [_BEGIN, origin.text, _END] if origin.text else [_BEGIN, _END]
    return "\n".join(["---", *header, "---", "", title, "", *text, "", *_size(model), "", *_USE, ""])


def _own_name(model: Any) -> str | None:
    """The name on the hub, or of the folder, that a model of transformers was read from; None if it is not known."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not isinstance(name, str) or not name.isprintable() or set(name) & set('"\\'):
        return None
    # A path of this machine means nothing elsewhere.
    return (name if name.count("/") == 1 and not Path(name).exists() else Path(name).name) or None


def _size(model: nn.Module) -> list[str]:
    layers = compressed_layers(model).values()
    tensors = {id(value): value for value in model.state_dict(keep_vars=True).values()}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    kinds = sorted({layer.kind for layer in layers})
    return [
        f"{counted(len(layers), 'layer')} of it are compressed ({', '.join(kinds)}). All tensors together take "
        f"{megabytes(size)}."
    ]


_USE = (
    "## How to load it",
    "",
    "```python",
    "import mpochain  # tells transformers how to read this folder",
    "from transformers import AutoModelForCausalLM",
    "",
    'model = AutoModelForCausalLM.from_pretrained("FOLDER OR NAME")',
    "```",
    "",
    "`mpochain.load(folder)` reads the same folder, and checks its hashes and sizes before anything is allocated.",
    "Without `import mpochain`, transformers does not find the file of tensors and stops.",
)
