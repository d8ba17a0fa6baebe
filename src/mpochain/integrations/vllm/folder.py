"""Checks of a folder before vLLM builds its model: what can be served, and whether the folder is as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpochain.checkpoint.configuration import CONFIG, Description, read_configuration
from mpochain.checkpoint.stored import opened_tensors
from mpochain.errors import ArgumentError, CheckpointError

__all__ = ["REMEDY", "SERVED", "require_intact", "require_servable"]

REMEDY = "make the model dense for vLLM: mpochain convert FOLDER --out PLAIN"

# Classes of transformers whose tensors vLLM takes as they are. Its code for others may reorder or transpose rows while
# it loads, which would be wrong for the tensors of compressed layers.
SERVED = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


def require_servable(description: Description, hf_config: Any) -> None:
    """Refuse a model of which vLLM would compute something else than transformers.

    Args:
        description: the compressed layers.
        hf_config: configuration of transformers.

    Raises:
        ArgumentError: a class that was not tried, separate experts, or ties that vLLM does not know.
    """
    names = getattr(hf_config, "architectures", None) or ["an unnamed class"]
    if names[0] not in SERVED:
        raise ArgumentError(
            f"vLLM serves compressed models of the classes {', '.join(SERVED)}, and this is {names[0]}; {REMEDY}"
        )
    if description.experts:
        raise ArgumentError(f"{description.experts[0]} has compressed experts, which vLLM cannot run; {REMEDY}")
    for name, first in description.tied.items():
        if not any(_is_within(name, layer) for layer in description.layers) and not (
            _is_head(name) and getattr(hf_config, "tie_word_embeddings", False)
        ):
            raise ArgumentError(f"{name} is tied to {first}, which vLLM does not know of this model; {REMEDY}")


def _is_within(tensor: str, layer: str) -> bool:
    return tensor.startswith(f"{layer}.")


def _is_head(tensor: str) -> bool:
    return tensor.rpartition(".")[0].rpartition(".")[2] == "lm_head"


def require_intact(folder: Path) -> None:
    """Compare the files of a folder with the hashes in its configuration; vLLM itself notices no missing tensor.

    Args:
        folder: folder of a model.

    Raises:
        CheckpointError: a file is missing, damaged or no part of the model.
    """
    config = read_configuration(folder / CONFIG)
    known = {config.tensors}
    with opened_tensors(folder, config):
        if config.tensors.endswith(".json"):
            known = set(json.loads((folder / config.tensors).read_bytes())["weight_map"].values())
    extra = sorted(file.name for file in folder.glob("*.safetensors") if file.name not in known)
    if extra:
        raise CheckpointError(
            f"{folder / extra[0]} is no part of the model, but vLLM would read it as well; move it elsewhere"
        )
