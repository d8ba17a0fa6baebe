"""Publication of compressed models on the Hugging Face hub, with their model card."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from mpochain.checkpoint.card import CARD

__all__ = ["publish"]

# Tensors of a model that the new one replaces.
_OUTDATED = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def publish(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: Sequence[str] | None = None,  # noqa: ARG001  # those of the card are written with it
) -> Any:
    """Write a compressed model and upload its folder; the arguments are those of ``push_to_hub`` of transformers.

    A model card that the repository has stays as it is.

    Args:
        model: model with compressed layers.
        repo_id: name on the hub; the repository is created if needed.
        commit_message: first line of the commit.
        commit_description: further lines.
        private: whether a new repository is private; None for the default of the organisation.
        token: of the hub.
        revision: branch to write to.
        create_pr: whether to open a pull request.
        max_shard_size: largest size of a file of tensors.
        tags: not used; the card has its own.

    Returns:
        What the client of the hub returns for the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="50GB" if max_shard_size is None else max_shard_size)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(_OUTDATED),
            ignore_patterns=[CARD] if api.file_exists(repo_id, CARD, revision=revision) else None,
        )
