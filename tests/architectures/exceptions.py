"""Settings that the general recipe for tiny configurations does not find, by model type."""

from __future__ import annotations

from typing import Any

_STATES = {"mamba_n_heads": 8, "mamba_d_head": 8}

_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
_TEXT_WITH_ROTARY = {"text_config": {"rope_parameters": _ROTARY}}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**_STATES, "attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "donut-swin": {"window_size": 4},
    "dpt": {"neck_hidden_sizes": [32] * 4, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "esm": {"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {**_STATES, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm46v": _TEXT_WITH_ROTARY,
    "glm4v": _TEXT_WITH_ROTARY,
    "glm4v_moe": _TEXT_WITH_ROTARY,
    "glm_ocr": _TEXT_WITH_ROTARY,
    "granitemoehybrid": {**_STATES, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 24},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mpnet": {"relative_attention_num_buckets": 32},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl": _TEXT_WITH_ROTARY,
    "qwen2_5_omni_thinker": _TEXT_WITH_ROTARY,
    "qwen2_5_vl": _TEXT_WITH_ROTARY,
    "qwen2_vl": _TEXT_WITH_ROTARY,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "swin": {"window_size": 4},
    "swinv2": {"window_size": 4},
    "t5": {"decoder_start_token_id": 0},
    # Filters double six times.
    "vibevoice": {"audio_config": {"num_filters": 1}, "semantic_model_config": {"num_filters": 1}},
    "wav2vec2-bert": {"vocab_size": 64},
    "wav2vec2-conformer": {"vocab_size": 64},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"n_mamba_heads": 8, "mamba_headdim": 8},
}
