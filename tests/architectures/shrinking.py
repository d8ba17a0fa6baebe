"""Tiny configurations of transformers models, made from their defaults by the names of the settings."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import transformers

from architectures.exceptions import EXCEPTIONS

__all__ = ["VOCABULARY", "tiny_config"]

VOCABULARY, LAYERS = 64, 2

# The first rule whose expression matches the whole name of a setting gives its value. Smaller values stay.
_RULES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|.*(codebook|quantizer)_size", VOCABULARY),
    (r"n_group|topk_group|num_expert_group|num_group", 1),
    (r"num_channels|.*_channels_in|in_chans|num_labels|.*stride.*|.*kernel.*|.*groups?|.*_factor", 1 << 30),
    (r".*(key_value|kv)_heads|n_head_kv|multi_query_group_num|num_query_groups|.*linear_num_key_heads", 2),
    (r"(.*_)?(heads?|nhead|n_heads?|num_head)|.*heads_per_layer", 4),
    (r"(.*_)?(layers?|n_layers?|depth|num_.*blocks?|num_.*per_block|num_stages|.*hidden_layers|.*layers_.*)", LAYERS),
    (r".*(per_tok(en)?|top_?k.*|num_selects|moe_k)", 2),
    (r".*(experts?)", 4),
    (r".*rope_head_dim", 8),
    (r".*(rotary_dim|rope_dim)", 4),
    (r".*(head_?dim|d_kv|head_size|kv_channels|dim_head|d_head|headdim|dim_key|attention_head_.*)", 8),
    (r".*(rank|d_rel)", 8),
    (r".*(position.*|n_ctx|seq_len.*|sequence_length|context_.*|model_max_length|max_pos_emb|rel_extent)", 64),
    (r".*(intermediate.*size.*|ffn.*(dim|size)|d_ff|dff|n_inner|dim_ff|feed_?forward.*|d_inner|mlp_dim|mlp_size)", 48),
    (r".*image_size|img_size|train_size|crop_size", 32),
    (r".*patch_sizes?", 8),
    (r".*window.*|local_attn?.*length|lsh_attn.*length|.*chunk_(size|length)|block_size|.*attention_span", 8),
    (r".*(state_size|d_state|ssm_state.*)", 8),
    (r".*(mel_bins|feature_size|n_mels|feat_size)", 16),
    (r".*(quer(y|ies)(_length|_tokens)?|num_latents|.*codevectors.*|num_conv_pos_embeddings|num_buckets)", 16),
    (r".*(hidden_sizes?|width|size|d_model|n_embd|dims?|channels|n_filters?|num_filters|_dim_?.*|d_latents)", 32),
)
_COMPILED = tuple((re.compile(expression), value) for expression, value in _RULES)
# Names of parts, which change with their number, and what says where a configuration comes from.
_DROPPED = frozenset(
    {
        *("transformers_version", "architectures", "dtype", "torch_dtype", "stage_names", "out_features"),
        *("out_indices", "_out_features", "_out_indices", "feature_layers"),
    }
)
# Numbers that say something else than a size.
_KEPT = re.compile(
    r".*(token_id|token_index|_idx|_index|_rate|_ratio|_theta|_scale|_seed|epsilon|dropout|decay|version|offset)s?"
)


def tiny_config(kind: Any) -> Any:
    """Return a configuration with few layers of few features.

    Args:
        kind: class of configurations in transformers.
    """
    changes = EXCEPTIONS.get(kind.model_type, {})
    parts = {name: tiny_config(transformers.CONFIG_MAPPING[part]) for name, part in changes.get("parts", {}).items()}
    settings = _shrunk(kind(**parts).to_dict())
    return kind.from_dict(_merged(settings, {name: value for name, value in changes.items() if name != "parts"}))


def _merged(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        inner = settings.get(name)
        settings[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return settings


def _shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    settings = {str(name): value for name, value in settings.items()}
    small: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    if "kv_lora_rank" in settings:  # latent attention, whose rotary part is a head of its own in some families
        fixed = {"head_dim": 8, "qk_head_dim": 16, "num_key_value_heads": 4}
    elif "head_dim" in settings and settings.get("num_attention_heads") is not None:
        fixed = {"head_dim": 8}
    if "vocab_size" in settings:
        fixed |= {"vocab_size": VOCABULARY, "pad_token_id": 1}
    lengths = {
        value
        for name, value in settings.items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and _size(name, LAYERS + 1) == LAYERS
        and value > LAYERS
    }
    for name, value in settings.items():
        if name in _DROPPED:
            continue
        if name in fixed:
            small[name] = fixed[name]
        elif name == "mrope_section":
            small[name] = [2, 1, 1]
        elif isinstance(value, dict):
            small[name] = value if name in ("id2label", "label2id") else _shrunk(value)
            if value and all(str(key).isdigit() for key in value) and "layer" in name:
                small[name] = {key: part for key, part in small[name].items() if int(key) < LAYERS}
        elif isinstance(value, list):
            small[name] = _shrunk_list(name, value, lengths)
        elif name.endswith(("token_id", "token_index")) or (name.endswith("_id") and isinstance(value, int)):
            small[name] = _token(name, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            small[name] = _size(name, value)
        else:
            small[name] = value
    return small


def _shrunk_list(name: str, values: list[Any], lengths: set[int]) -> list[Any]:
    if len(values) in lengths:
        # One entry per layer: keep the first of each kind.
        distinct: list[Any] = []
        for value in values:
            if value not in distinct:
                distinct.append(value)
        values = [*distinct, *values][:LAYERS]
    return [
        _shrunk(value)
        if isinstance(value, dict)
        else _size(name, value)
        if isinstance(value, int) and not isinstance(value, bool) and not name.endswith(("id", "ids"))
        else copy.deepcopy(value)
        for value in values
    ]


# Ids that a model compares with one another must differ.
_IDS = ("pad", "bos", "eos", "unk", "sep", "cls", "mask", "image", "video", "audio", "start", "end", "decoder_start")


def _token(name: str, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or value < VOCABULARY - len(_IDS):
        return value
    first = next((k for k, part in enumerate(_IDS) if part in name), len(_IDS) - 1)
    return VOCABULARY - 1 - first


def _size(name: str, value: int) -> int:
    if _KEPT.fullmatch(name):
        return value
    for expression, limit in _COMPILED:
        if expression.fullmatch(name):
            # Three heads would divide no width.
            return 2 if value == 3 and "heads" in name else min(value, limit)
    return value
