"""Random inputs of any transformers model, from the arguments of its forward."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from architectures.shrinking import VOCABULARY

__all__ = ["batch_for"]

COUNT, LENGTH, SAMPLES, FRAMES = 2, 12, 2000, 128

# Models that read sound as (n, time, features), and the setting with the number of features; others read (n, features,
# time).
_TIME_FIRST = {
    "audio-spectrogram-transformer": "num_mel_bins",
    "canary": "num_mel_bins",
    "cohere_asr": "num_mel_bins",
    "granite_speech5": "num_mel_bins",
    "lasr_ctc": "num_mel_bins",
    "parakeet_ctc": "num_mel_bins",
    "seamless_m4t": "feature_projection_input_dim",
    "seamless_m4t_v2": "feature_projection_input_dim",
    "speech_to_text": "input_feat_per_channel",
    "wav2vec2-bert": "feature_projection_input_dim",
}


def batch_for(model: nn.Module, seed: int = 0) -> dict[str, Any]:
    """Return keyword arguments for one call of a model: tokens, pixels or sound, whatever it reads.

    Args:
        model: a transformers model.
        seed: seed of the values.
    """
    transformers_model: Any = model
    draw = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(transformers_model.forward).parameters
    main = transformers_model.main_input_name
    batch = {main: _values(main, transformers_model, draw)}
    for name in ("input_ids", "pixel_values", "bbox"):
        if name in accepted and accepted[name].default is inspect.Parameter.empty:
            batch[name] = _values(name, transformers_model, draw)
    if "decoder_input_ids" in accepted:
        batch["decoder_input_ids"] = _tokens(transformers_model, draw)
    if "CLIP" in type(model).__name__ or {"input_ids", "pixel_values", "return_loss"} <= set(accepted):
        batch["pixel_values"] = _values("pixel_values", transformers_model, draw)
    return batch


def _tokens(model: Any, draw: torch.Generator) -> Tensor:
    # The first and the last ids are special tokens.
    tokens = torch.randint(5, VOCABULARY - 14, (COUNT, LENGTH), generator=draw)
    end = _setting(model.config, "eos_token_id", None)
    if isinstance(end, int):  # classifiers of BART read the state of the last token
        tokens[:, -1] = end
    return tokens


def _values(name: str, model: Any, draw: torch.Generator) -> Tensor:
    config = model.config
    if name in ("input_ids", "decoder_input_ids") or (name == "inputs" and config.model_type == "perceiver"):
        return _tokens(model, draw)
    if name.startswith("pixel_values"):
        size = _setting(config, "image_size", 32)
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        frames = _setting(config, "num_frames", None) or _setting(config, "frames_per_clip", None)
        clip = [frames] if frames else []
        return torch.randn(COUNT, *clip, _setting(config, "num_channels", 3), *size, generator=draw)
    if name in ("input_values", "input_features") and config.model_type in _TIME_FIRST:
        features = _setting(config, _TIME_FIRST[config.model_type], 16)
        return torch.randn(COUNT, _setting(config, "max_length", FRAMES), features, generator=draw)
    if name == "input_values" or (name == "inputs" and config.model_type == "speech-encoder-decoder"):
        return torch.randn(COUNT, SAMPLES, generator=draw)
    if name == "input_features":
        return torch.randn(COUNT, _setting(config, "num_mel_bins", 16), FRAMES, generator=draw)
    if name == "bbox":
        return torch.zeros(COUNT, LENGTH, 4, dtype=torch.long)
    raise NotImplementedError(f"no rule for inputs called {name}")


def _setting(config: Any, name: str, default: Any) -> Any:
    """The first setting of this name in a configuration or in those within it."""
    found = getattr(config, name, None)
    if found is not None:
        return found
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if inner is not None and (found := _setting(inner, name, None)) is not None:
            return found
    return default
