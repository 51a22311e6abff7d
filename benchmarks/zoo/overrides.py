"""What the shrinker cannot know, as data: by model type of a part, and by architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PATTERN = 2
"""Two kinds of layers, alternating: an architecture whose default stack has one kind though its released models mix."""


@dataclass(frozen=True)
class Override:
    """Of one architecture.

    Attributes:
        base: Given to the configuration's class before anything is cut.
        changes: Set last, by dotted path from the configuration's root.
        calm: For parameters whose name matches, how much less widely than the others they are drawn.
    """

    base: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    calm: dict[str, float] = field(default_factory=dict)


def _mrope(*sections: int) -> dict[str, Any]:
    """How the frequencies of a head of 16 are shared out over time, rows and columns."""
    return {"rope_parameters.mrope_section": list(sections)}


_SAM = {"output_channels": 32, "window_size": 3, "image_size": 128}
_TINY_VQ = {
    "num_embeddings": 32,
    "embed_dim": 8,
    "latent_channels": 32,
    "base_channels": 32,  # group norms of 32 groups
    "channel_multiplier": [1, 1, 2, 2],
    "num_res_blocks": 1,
}
# A quarter of each head turns: heads of 32 leave four frequencies.
_QWEN3_5_TEXT = {"head_dim": 32, **_mrope(2, 1, 1)}
_GEMMA4_TEXT = {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 16}
_MINICPM_VISION = {"insert_layer_id": 1}

def _convolutions(width: int, stride: int) -> dict[str, Any]:
    """A block of MobileNet V5: an inverted bottleneck."""
    return {
        "block_type": "uir", "out_chs": width, "stride": stride, "act_layer": None,
        "dw_kernel_size_start": 3, "dw_kernel_size_mid": 3 if stride > 1 else 0, "dw_kernel_size_end": 0,
        "exp_ratio": 2.0, "se_ratio": 0.0, "noskip": False,
    }  # fmt: skip


def _attention(width: int) -> dict[str, Any]:
    """A block of MobileNet V5: two heads of queries over one of keys and values."""
    return {
        "block_type": "mqa", "out_chs": width, "stride": 1, "act_layer": None, "dw_kernel_size": 3,
        "num_heads": 2, "key_dim": 16, "value_dim": 16, "kv_stride": 1, "noskip": False,
    }  # fmt: skip


_MOBILENET = [
    [_convolutions(16, 2)],
    [_convolutions(24, 2)],
    [_convolutions(32, 2), _attention(32), _convolutions(32, 1)],
    [_convolutions(48, 2), _attention(48), _convolutions(48, 1)],
]

PARTS: dict[str, dict[str, Any]] = {
    "cosmos3_edge_text": _mrope(3, 3, 2),
    "ernie4_5_vl_moe_text": {**_mrope(3, 3, 2), "moe_intermediate_size": [32, 24]},
    "glm4v_text": _mrope(2, 3, 3),
    "glm4v_moe_text": _mrope(1, 1, 2),  # half of each head turns
    "glm_ocr_text": _mrope(2, 3, 3),
    "hunyuan_vl_text": {"head_dim": 16, **_mrope(2, 2, 2, 2)},
    "paddleocr_vl_text": _mrope(2, 3, 3),
    "qwen2_vl_text": _mrope(2, 3, 3),
    "qwen2_vl_vision": {"hidden_size": 64},  # the text's width: embed_dim is its own
    "qwen2_5_vl_text": _mrope(2, 3, 3),
    "qwen2_5_omni_text": _mrope(2, 3, 3),
    "qwen3_omni_moe_text": {**_mrope(3, 3, 2), "vocab_size": 512},
    "qwen3_vl_text": _mrope(3, 3, 2),
    "qwen3_vl_moe_text": _mrope(3, 3, 2),
    "qwen3_5_text": _QWEN3_5_TEXT,
    "qwen3_5_moe_text": _QWEN3_5_TEXT,
    "qwen4_exp_text": {
        **_mrope(3, 3, 2), "hc_lowrank": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 16, "indexer_compress_ratio": 4,
        "ple_embed_dim": 64,
    },
    "step3p5": {
        "layer_types": ["full_attention", "sliding_attention"] * PATTERN, "sliding_window": 8,
        "num_sliding_attention_heads": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * PATTERN,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
            "full_attention": None,
        },
    },
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "gemma4_text": _GEMMA4_TEXT,
    "gemma4_unified_vision": {"mm_embed_dim": 48, "mm_posemb_size": 64, "output_proj_dims": 48, "pooling_kernel_size": 2},
    "gemma4_vision": {"position_embedding_size": 64, "pooling_kernel_size": 2},
    "glm5_next_text": {"index_kpool": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * PATTERN, "full_attn_idxs": [1, 3], "block_multiple_of": 16},
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1,
    },
    "deepseek_v3": {"first_k_dense_replace": 1, "head_dim": 8},  # the part of a head that turns
    "mistral_large4_text": {"head_dim": 8},
    # Vision encoders.
    **dict.fromkeys(
        ("exaone4_5_vision", "qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder"),
        {"window_size": 32},  # 2 × 2 merged patches of 16 × 16 pixels
    ),
    **dict.fromkeys(("got_ocr2_vision", "pp_chart2table_vision"), _SAM),
    "step3p5_vision": {"image_size": 64},
    "kosmos_2_5_vision_model": {"patch_embed_hidden_size": 192, "max_num_patches": 128},
    "pix2struct_vision_model": {
        "hidden_size": 64, "num_attention_heads": 4,  # the decoder's width
        "patch_embed_hidden_size": 192, "seq_len": 128,
    },
    "sam_vision_model": {**_SAM, "num_pos_feats": 16},
    "deepseek_ocr2_sam_vision_model": {**_SAM, "downsample_channels": [40, 48]},
    "unlimited_ocr_sam_vision_model": {**_SAM, "downsample_channels": [40, 48]},
    "pp_formulanet_vision": {
        **_SAM, "post_conv_in_channels": 32, "post_conv_mid_channels": 40,
        "post_conv_out_channels": 48, "decoder_hidden_size": 64,
    },
    "florence_vision": {
        "depths": [1, 1, 2, 1], "embed_dim": [16, 24, 32, 48], "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4], "window_size": 3, "patch_size": [7, 3, 3, 3],
    },
    "llama4_vision_model": {
        "intermediate_size": 192, "projector_input_dim": 72, "projector_output_dim": 72,
        "vision_output_dim": 72,
    },  # pixel shuffle puts four patches of 48 side by side
    "mllama_vision_model": {
        "intermediate_layers_indices": [1, 3], "num_global_layers": 2, "vision_output_dim": 144,
    },
    "mllama_text_model": {"cross_attention_layers": [1, 3]},
    "minicpm_ocr_vision": _MINICPM_VISION,
    "minicpmv4_6_vision": _MINICPM_VISION,
    "minicpmv4_7_vision": _MINICPM_VISION,
    "granite_docling_vision": {"image_size": 64},
    "radio": {"max_img_size": 64, "patch_dim": 192, "video_patch_dim": 384},
    "chameleon_vqgan": {**_TINY_VQ, "resolution": 32},
    "janus_vqgan": {**_TINY_VQ, "image_token_embed_dim": 64, "projection_dim": 64, "num_patches": 4},
    "emu3_vqgan": {
        "codebook_size": 32, "base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1,
        "hidden_size": 64,
    },
    "dots3_note_audio_encoder": {"downsample_hidden_size": 16, "conv_output_size": 256},
    "qwen3_omni_moe_audio_encoder": {"downsample_hidden_size": 16, "output_dim": 64},
    "qwen2_5_omni_audio_encoder": {"output_dim": 64},
    "inkling_audio": {"mel_vocab_size": 16},
    "hunyuan_vl_vision": {"max_image_size": 128, "min_image_size": 32},
    "gemma3n_vision": {
        "model_args": {"block_args": _MOBILENET, "msfa_output_resolution": 4},
        "hidden_size": 2048,  # fixed in the encoder
        "vocab_size": 8, "vocab_offset": 480,
    },
    "gemma3n_audio": {
        "vocab_size": 8, "vocab_offset": 488, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 3,
        "sscp_conv_channel_size": [8, 4], "input_feat_size": 16,
    },
    "gemma3n_text": {
        **_GEMMA4_TEXT, "vocab_size_per_layer_input": 480, "laurel_rank": 8, "num_kv_shared_layers": 2,
    },
    "muse_spark_audio": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}  # fmt: skip

_ANYRES = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
_VISUAL_TOKENS = range(100, 132)

# Scores that nothing divides by the root of the heads' width: drawn as widely as the rest, a softmax would be one-hot.
_UNDIVIDED = {r"(SelfAttention|EncDecAttention|attention)\.(q|query)\.weight$": 0.25}

NAMES: dict[str, Override] = {
    "aria": Override(changes={"projector_patch_to_query_dict": {16: 6}, "max_value_projector_patch_to_query_dict": 6}),
    "chameleon": Override(
        changes={
            "vocabulary_map": {
                "<image>": 450,
                # Numbers are spelt with letters: A is 0, J is 9.
                **{f"IMGIMG{''.join('ABCDEFGHIJ'[int(c)] for c in str(i))}Z": t for i, t in enumerate(_VISUAL_TOKENS)},
            },
            "image_token_id": 450,
        }
    ),
    "emu3": Override(
        changes={
            "vocabulary_map": {
                "<image>": 450,
                "<|extra_200|>": 132,
                **{f"<|visual token {i:06d}|>": t for i, t in enumerate(_VISUAL_TOKENS)},
            },
            "image_token_id": 450,
        }
    ),
    "gemma3": Override(changes={"mm_tokens_per_image": 16, "vision_config.image_size": 64}),
    "shieldgemma2": Override(changes={"mm_tokens_per_image": 16, "vision_config.image_size": 64}),
    "t5gemma2": Override(
        changes={"encoder.mm_tokens_per_image": 16, "encoder.vision_config.image_size": 64}
    ),
    "fast_vlm": Override(
        changes={
            "vision_config.model_args": {
                "inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [8, 16, 32, 32, 64],
            },
            "vision_config.hidden_size": 128,  # twice the last stage's
        }
    ),
    "gemma3n": Override(changes={"vision_soft_tokens_per_image": 16}),
    "perception_lm": Override(
        base={"vision_config": {"model_type": "timm_wrapper", "architecture": "vit_pe_lang_large_patch14_448"}},
        changes={
            "vision_config.model_args": {
                "embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": [32, 32], "patch_size": 8,
                "ref_feat_shape": [4, 4], "global_pool": "",
            },
            "projector_pooling_ratio": 2,
        },
    ),
    "gemma4": Override(base={"vision_config": {}}),
    "gemma4_unified": Override(base={"vision_config": {}}),
    "granite4_vision": Override(
        changes={
            "image_grid_pinpoints": [[2 * h, 2 * w] for h, w in _ANYRES],
            "vision_config.image_size": 64,
            "vision_config.hidden_size": 128,  # its Q-Formers have one head for each 64
            "vision_config.num_attention_heads": 4,
            "downsample_rate": "2/4",
            "deepstack_layer_map": [[1, 0], [-2, 1]],
            "spatial_target_layers": [0, 1, 2, 3],
        }
    ),
    "llava_next": Override(changes={"image_grid_pinpoints": _ANYRES}),
    "llava_next_video": Override(changes={"image_grid_pinpoints": _ANYRES}),
    "llava_onevision": Override(changes={"image_grid_pinpoints": _ANYRES}),
    "molmo2": Override(
        changes={
            "adapter_config.vision_feature_layer": [3, 1],
            "vision_config.num_position_embeddings": 16,
            "text_config.additional_vocab_size": 16,
        },
        calm={r"image_pooling_2d\.(q|k)_proj\.weight$": 0.3},  # reads a residual stream that no norm has scaled
    ),
    # Positions follow these markers; a default configuration has none, every released one does.
    "minicpmv4_7": Override(
        changes={
            "image_start_id": 450, "image_end_id": 451, "slice_start_id": 452, "slice_end_id": 453,
            "newline_id": 454,
        }
    ),
    **dict.fromkeys(
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        Override(changes={"vision_start_token_id": 450, "vision_end_token_id": 451}),
    ),
    **dict.fromkeys(
        ("muse_glimmer", "muse_spark"),
        Override(changes={"out_hidden_size": 192}),  # four patches of 48, side by side
    ),
    "kimi_k25": Override(changes={"projection_hidden_size": 48}),  # the vision encoder's own width
    **dict.fromkeys(("pix2struct", "udop"), Override(calm=_UNDIVIDED)),
    "vipllava": Override(changes={"vision_feature_layer": [-2, -3, -4, 1]}),
}
