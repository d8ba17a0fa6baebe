"""The classes of transformers that the suite goes through, by what they are for."""

from __future__ import annotations

from transformers.models.auto import modeling_auto

__all__ = ["KINDS", "classes"]

# What a class is for, and the table of transformers that lists such classes.
KINDS = {
    "causal language models": "CAUSAL_LM",
    "sequence to sequence": "SEQ_TO_SEQ_CAUSAL_LM",
    "masked language models": "MASKED_LM",
    "image classification": "IMAGE_CLASSIFICATION",
    "images by texts": "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "segmentation": "SEMANTIC_SEGMENTATION",
    "depth": "DEPTH_ESTIMATION",
    "object detection": "OBJECT_DETECTION",
    "video classification": "VIDEO_CLASSIFICATION",
    "images to text": "IMAGE_TEXT_TO_TEXT",
    "speech to text": "SPEECH_SEQ_2_SEQ",
    "speech, CTC": "CTC",
    "sound classification": "AUDIO_CLASSIFICATION",
    "sequence classification": "SEQUENCE_CLASSIFICATION",
    "token classification": "TOKEN_CLASSIFICATION",
}


def classes() -> dict[str, str]:
    """Return the kind of every class, by its name; a class with several kinds has the first."""
    kinds: dict[str, str] = {}
    for kind, table in KINDS.items():
        for names in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values():
            for name in names if isinstance(names, tuple | list) else [names]:
                kinds.setdefault(name, kind)
    return kinds
