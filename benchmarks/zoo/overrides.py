"""What the shrinker cannot know, as data: by model type of a part, and by architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REASONS: dict[str, str] = {}
"""Architectures that cannot be built or run, each with its reason: none."""

TIMM = ("fast_vlm", "gemma3n", "perception_lm")
"""Their vision encoders come from timm: where it is beside the environment, call :func:`zoo.shim.install` first."""

WITHOUT_IMAGE = {
    "evolla": "It reads proteins, not images.",
    "mistral4": "The entry is a language model; its images are mistral3's affair.",
}
"""Architectures whose answer cannot depend on an image."""

DISCRETE = {
    "chameleon": "The image becomes the nearest codes of a VQ encoder.",
    "emu3": "The image becomes the nearest codes of a VQ encoder.",
}
"""Architectures whose answer depends on the image, but has no gradient with respect to its pixels."""


@dataclass(frozen=True)
class Override:
    """Of one architecture.

    Attributes:
        base: Given to the configuration's class before anything is cut.
        changes: Set last, by dotted path from the configuration's root.
        calm: For matrices whose name matches, how much less widely than the others they are drawn.
    """

    base: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    calm: dict[str, float] = field(default_factory=dict)


def _mrope(*sections: int) -> dict[str, Any]:
    """How the frequencies of a head are shared out over time, rows and columns: a head of 16 has eight."""
    return {"rope_parameters.mrope_section": list(sections)}


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **more}


def _bottleneck(width: int, stride: int) -> dict[str, Any]:
    """A block of MobileNet V5: convolutions."""
    return {
        "block_type": "uir", "out_chs": width, "stride": stride, "act_layer": None,
        "dw_kernel_size_start": 3, "dw_kernel_size_mid": 3 if stride > 1 else 0,
        "dw_kernel_size_end": 0, "exp_ratio": 2.0, "se_ratio": 0.0, "noskip": False,
    }  # fmt: skip


def _attention(width: int) -> dict[str, Any]:
    """A block of MobileNet V5: two heads of queries over one of keys and values."""
    return {
        "block_type": "mqa", "out_chs": width, "stride": 1, "act_layer": None, "dw_kernel_size": 3,
        "num_heads": 2, "key_dim": 16, "value_dim": 16, "kv_stride": 1, "noskip": False,
    }  # fmt: skip


_MOBILENET = [
    [_bottleneck(16, 2)],
    [_bottleneck(24, 2)],
    [_bottleneck(32, 2), _attention(32), _bottleneck(32, 1)],
    [_bottleneck(48, 2), _attention(48), _bottleneck(48, 1)],
]
# 16 × 16 patches in windows that do not divide them, as 64 in windows of 14 do not.
_SAM = {"output_channels": 32, "window_size": 3, "image_size": 128}
_WINDOWS = {"window_size": 32}  # pixels: 2 × 2 merged patches
_ROOT_OF_HEAD = {"attention_multiplier": 0.25}
_MERGED_AFTER = {"insert_layer_id": 1}
_VQ = {
    "num_embeddings": 32, "embed_dim": 8, "latent_channels": 32, "num_res_blocks": 1,
    "base_channels": 32,  # group norms have 32 groups
    "channel_multiplier": [1, 1, 2, 2],
}  # fmt: skip
_QWEN3_5_TEXT = {"head_dim": 32, **_mrope(2, 1, 1)}  # a quarter of each head turns
_GEMMA_TEXT = {"vocab_size_per_layer_input": 480, "hidden_size_per_layer_input": 16}

# Model type of a part: values to set there, by dotted path.
PARTS: dict[str, dict[str, Any]] = {
    # Language models.
    **dict.fromkeys(
        (
            "glm4v_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_5_omni_text",
            "qwen2_5_vl_text", "qwen2_vl_text",
        ), _mrope(2, 3, 3),
    ),
    **dict.fromkeys(
        ("cosmos3_edge_text", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text"),
        _mrope(3, 3, 2),
    ),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _QWEN3_5_TEXT),
    "ernie4_5_vl_moe_text": {
        **_mrope(3, 3, 2),
        "moe_intermediate_size": [32, 24],  # experts for words, experts for image tokens
    },
    "glm4v_moe_text": _mrope(1, 1, 2),  # half of each head turns
    "hunyuan_vl_text": {"head_dim": 16, **_mrope(2, 2, 2, 2)},
    "qwen4_exp_text": {
        **_mrope(3, 3, 2), "hc_lowrank": 16, "ple_embed_dim": 64, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    # Released models mix kinds of layers where these defaults have one.
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": _rope(mrope_section=[3, 3, 2]),
            "full_attention": None,
        },
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": [1, 3],
        "block_multiple_of": 16,
    },
    "step3p5": {
        "layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8,
        "num_sliding_attention_heads": 6,
        "rope_parameters": {"full_attention": _rope(), "sliding_attention": _rope()},
    },
    # Scores are multiplied by this: one over the root of a head's width.
    **dict.fromkeys(("granite4_vision_text", "hyperclovax"), _ROOT_OF_HEAD),
    "granite_docling_text": {
        **_ROOT_OF_HEAD,
        "embedding_multiplier": 4.0, "logits_scaling": 1.0,  # for weights as wide as these
    },
    # Experts that a default leaves out, or does not number.
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1,
    },
    "deepseek_v3": {"first_k_dense_replace": 1, "head_dim": 8},  # of a head, the part that turns
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    # Where layers slide, a head is the part that turns, 8, and 12 that do not.
    "dots3_note_text": {"head_dim": 20},
    "gemma3n_text": {**_GEMMA_TEXT, "laurel_rank": 8, "num_kv_shared_layers": 2},
    "gemma4_text": _GEMMA_TEXT,
    "glm5_next_text": {"index_kpool": 4},  # divides index_topk
    "mistral_large4_text": {"head_dim": 8},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},  # for its width of 6144
    "mllama_text_model": {"cross_attention_layers": [1, 3]},
    # Vision encoders.
    **dict.fromkeys(
        ("exaone4_5_vision", "qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder"),
        _WINDOWS,
    ),
    **dict.fromkeys(
        ("minicpm_ocr_vision", "minicpmv4_6_vision", "minicpmv4_7_vision"),
        _MERGED_AFTER,
    ),
    **dict.fromkeys(("got_ocr2_vision", "pp_chart2table_vision"), _SAM),
    "chameleon_vqgan": {**_VQ, "resolution": 32},
    "deepseek_ocr2_sam_vision_model": {**_SAM, "downsample_channels": [40, 48]},
    "emu3_vqgan": {
        "codebook_size": 32, "base_channels": 32, "channel_multiplier": [1, 1, 2, 2],
        "num_res_blocks": 1, "hidden_size": 64,
    },
    "florence_vision": {
        "depths": [1, 1, 2, 1], "embed_dim": [16, 24, 32, 48], "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4], "window_size": 3, "patch_size": [7, 3, 3, 3],
    },
    "gemma3n_vision": {
        "model_args": {"block_args": _MOBILENET, "msfa_output_resolution": 4},
        "hidden_size": 2048,  # fixed in timm's encoder
        "vocab_size": 8, "vocab_offset": 480,
    },
    "gemma4_unified_vision": {
        "mm_embed_dim": 48, "mm_posemb_size": 64, "output_proj_dims": 48, "pooling_kernel_size": 2,
    },
    "gemma4_vision": {"position_embedding_size": 64, "pooling_kernel_size": 2},
    "granite_docling_vision": {"image_size": 64},  # 4 × 4 patches make one token
    "hunyuan_vl_vision": {"max_image_size": 128, "min_image_size": 32},
    "janus_vqgan": {**_VQ, "image_token_embed_dim": 64, "projection_dim": 64, "num_patches": 4},
    "kosmos_2_5_vision_model": {"patch_embed_hidden_size": 192, "max_num_patches": 128},
    "llama4_vision_model": {
        "intermediate_size": 192,  # four patches of 48, which its pixel shuffle puts side by side
        "projector_input_dim": 72, "projector_output_dim": 72, "vision_output_dim": 72,
    },
    "mllama_vision_model": {
        "intermediate_layers_indices": [1, 3], "num_global_layers": 2,
        "vision_output_dim": 144,  # the last layer's 48, and those of the two
    },
    "pix2struct_vision_model": {
        "hidden_size": 64, "num_attention_heads": 4,  # the decoder's
        "patch_embed_hidden_size": 192, "seq_len": 128,
    },
    "pp_formulanet_vision": {
        **_SAM, "post_conv_in_channels": 32, "post_conv_mid_channels": 40,
        "post_conv_out_channels": 48, "decoder_hidden_size": 64,
    },
    "qwen2_vl_vision": {"hidden_size": 64},  # the text's width: embed_dim is its own
    "radio": {"max_img_size": 64, "patch_dim": 192, "video_patch_dim": 384},
    "sam_vision_model": {**_SAM, "num_pos_feats": 16},
    "step3p5_vision": {"image_size": 64},  # downsampled four times
    "unlimited_ocr_sam_vision_model": {**_SAM, "downsample_channels": [40, 48]},
    # Audio encoders, which stay though nothing is heard.
    "dots3_note_audio_encoder": {"downsample_hidden_size": 16, "conv_output_size": 256},
    "gemma3n_audio": {
        "vocab_size": 8, "vocab_offset": 488, "conf_num_hidden_layers": 1,
        "conf_num_attention_heads": 3, "sscp_conv_channel_size": [8, 4], "input_feat_size": 16,
    },
    "inkling_audio": {"mel_vocab_size": 16},
    "muse_spark_audio": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "qwen2_5_omni_audio_encoder": {"output_dim": 64},
    "qwen3_omni_moe_audio_encoder": {"downsample_hidden_size": 16, "output_dim": 64},
}  # fmt: skip

_PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
_IMAGE, _CODES = 450, range(100, 132)
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
_GEMMA3 = {"mm_tokens_per_image": 16, "vision_config.image_size": 64}

NAMES: dict[str, Override] = {
    "aria": Override(
        changes={
            "projector_patch_to_query_dict": {16: 6},
            "max_value_projector_patch_to_query_dict": 6,
        }
    ),
    "chameleon": Override(
        changes={
            "image_token_id": _IMAGE,
            "vocabulary_map": {
                "<image>": _IMAGE,
                # A code's number is spelt in letters: A is 0, J is 9.
                **{f"IMGIMG{str(i).translate(_LETTERS)}Z": token for i, token in enumerate(_CODES)},
            },
        }
    ),
    "emu3": Override(
        changes={
            "image_token_id": _IMAGE,
            "vocabulary_map": {
                "<image>": _IMAGE,
                "<|extra_200|>": 132,  # ends each row of codes
                **{f"<|visual token {i:06d}|>": token for i, token in enumerate(_CODES)},
            },
        }
    ),
    "fast_vlm": Override(
        changes={
            "vision_config.model_args": {
                "inference_mode": True,
                "layers": [1, 1, 1, 1, 1],
                "embed_dims": [8, 16, 32, 32, 64],
            },
            "vision_config.hidden_size": 128,  # twice the last stage's
        }
    ),
    "gemma3": Override(changes=_GEMMA3),
    "gemma3n": Override(changes={"vision_soft_tokens_per_image": 16}),
    # A default configuration leaves the vision encoder out.
    **dict.fromkeys(("gemma4", "gemma4_unified"), Override(base={"vision_config": {}})),
    "granite4_vision": Override(
        changes={
            "image_grid_pinpoints": [[2 * height, 2 * width] for height, width in _PINPOINTS],
            "vision_config.image_size": 64,
            "vision_config.hidden_size": 128,  # its Q-Formers have one head for each 64
            "vision_config.num_attention_heads": 4,
            "downsample_rate": "2/4",  # windows of 4 × 4 patches become 2 × 2 tokens
            "deepstack_layer_map": [[1, 0], [-2, 1]],
            "spatial_target_layers": [0, 1, 2, 3],
        }
    ),
    "kimi_k25": Override(changes={"projection_hidden_size": 48}),  # the vision encoder's own width
    **dict.fromkeys(
        ("llava_next", "llava_next_video", "llava_onevision"),
        Override(changes={"image_grid_pinpoints": _PINPOINTS}),
    ),
    # Positions follow these markers; a default configuration has none, every released one does.
    "minicpmv4_7": Override(
        changes={
            "image_start_id": 450,
            "image_end_id": 451,
            "slice_start_id": 452,
            "slice_end_id": 453,
            "newline_id": 454,
        }
    ),
    "molmo2": Override(
        changes={
            "adapter_config.vision_feature_layer": [3, 1],
            "vision_config.num_position_embeddings": 16,
            "text_config.additional_vocab_size": 16,
        },
        # It reads a residual stream that no norm has scaled: drawn as widely as the rest, it would be one-hot.
        calm={r"image_pooling_2d\.(q|k)_proj\.weight$": 0.3},
    ),
    **dict.fromkeys(
        ("muse_glimmer", "muse_spark"),
        Override(changes={"out_hidden_size": 192}),  # four patches of 48, side by side
    ),
    "perception_lm": Override(
        base={
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_lang_large_patch14_448",
            }
        },
        changes={
            "vision_config.model_args": {
                "embed_dim": 48,
                "depth": 4,
                "num_heads": 3,
                "img_size": [32, 32],
                "patch_size": 8,
                "ref_feat_shape": [4, 4],
                "global_pool": "",
            },
            "projector_pooling_ratio": 2,
        },
    ),
    # Their scores are not divided by the root of a head's width: drawn as widely as the rest, they would be one-hot.
    **dict.fromkeys(
        ("pix2struct", "udop"),
        Override(calm={r"(SelfAttention|EncDecAttention|attention)\.(q|query)\.weight$": 0.4}),
    ),
    # Normalised after each branch is added: branches as large as what they are added to would make all positions alike.
    "blip": Override(calm={r"^text_decoder.*attention\.output\.dense\.weight$": 0.4}),
    "florence2": Override(calm={r"attn\.out_proj\.weight$": 0.4}),
    **dict.fromkeys(
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        Override(changes={"vision_start_token_id": 450, "vision_end_token_id": 451}),
    ),
    "shieldgemma2": Override(changes=_GEMMA3),
    "t5gemma2": Override(changes={f"encoder.{path}": value for path, value in _GEMMA3.items()}),
    "vipllava": Override(changes={"vision_feature_layer": [-2, -3, -4, 1]}),
}
