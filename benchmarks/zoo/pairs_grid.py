"""Families that see a picture in its own shape: as many patches as it needs, two by two merged."""

from __future__ import annotations

from typing import Any

from zoo.pair import VOCAB, Made, Pair, clip, decoder
from zoo.tokens import ID

__all__ = ["PAIRS"]

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
PIXELS = {"shortest_edge": 1024, "longest_edge": 16384}
"""Least and most pixels of a picture: 500 × 300 becomes 160 × 96."""

VOLUME = {"shortest_edge": 2048, "longest_edge": 32768}
"""The same for those who count a picture as two frames."""

QWEN_IDS = {
    "image_token_id": ID["<|image_pad|>"], "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"], "vision_end_token_id": ID["<|vision_end|>"],
}  # fmt: skip


def qwen(
    model_type: str, kind: str, vision: dict[str, Any], text: dict[str, Any], video: str
) -> Pair:
    """The shape that Qwen's families share."""
    patch = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": PIXELS}
    return Pair(
        config={"model_type": model_type, **QWEN_IDS, "vision_config": vision, "text_config": text},
        processor=Made(kind),
        image=Made("Qwen2VLImageProcessor", patch),
        parts={"video_processor": Made(video, patch)},
        place="<|vision_start|><|image_pad|><|vision_end|>", token="<|image_pad|>",
        names={
            "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )  # fmt: skip


def glm(model_type: str, kind: str, vision: str, text: str) -> Pair:
    """The shape that GLM's families share."""
    patch = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": VOLUME}
    return Pair(
        config={
            "model_type": model_type, "image_token_id": ID["<|image|>"], "video_token_id": ID["<|video|>"],
            "image_start_token_id": ID["<|begin_of_image|>"], "image_end_token_id": ID["<|end_of_image|>"],
            "video_start_token_id": ID["<|begin_of_video|>"], "video_end_token_id": ID["<|end_of_video|>"],
            "vision_config": {
                "model_type": vision, "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128,
                "num_heads": 4, "image_size": 64, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
            "text_config": decoder(text, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}),
        },
        processor=Made(kind + "Processor"),
        image=Made(kind + "ImageProcessor", patch),
        parts={"video_processor": Made(kind + "VideoProcessor", patch)},
        place="<|begin_of_image|><|image|><|end_of_image|>", token="<|image|>",
        names={"image_token": "<|image|>", "video_token": "<|video|>"},
    )  # fmt: skip


PAIRS = {
    "qwen2_vl": qwen(
        "qwen2_vl", "Qwen2VLProcessor",
        {
            "depth": 3, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        decoder("qwen2_vl_text", rope_parameters=MROPE), "Qwen2VLVideoProcessor",
    ),
    "qwen2_5_vl": qwen(  # windows of 4 × 4 patches in all layers but the second
        "qwen2_5_vl", "Qwen2_5_VLProcessor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        decoder("qwen2_5_vl_text", rope_parameters=MROPE), "Qwen2VLVideoProcessor",
    ),
    "qwen3_vl": qwen(  # two inner layers' features are added inside the language model
        "qwen3_vl", "Qwen3VLProcessor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        decoder("qwen3_vl_text", rope_parameters={**MROPE, "mrope_interleaved": True}), "Qwen3VLVideoProcessor",
    ),
    "mistral3": Pair(  # a break after each row of the grid
        config={
            "model_type": "mistral3", "image_token_index": ID["[IMG]"], "spatial_merge_size": 2,
            "vision_feature_layer": -1,
            "vision_config": clip("pixtral", image_size=128, head_dim=16),
            "text_config": decoder("mistral", sliding_window=None),
        },
        processor=Made("PixtralProcessor", {"patch_size": 8, "spatial_merge_size": 2}),
        image=Made("PixtralImageProcessor", {"size": {"longest_edge": 128}, "patch_size": 16}),
        place="[IMG]", token="[IMG]", first="<s>",
    ),
    "glm4v": glm("glm4v", "Glm4v", "glm4v_vision", "glm4v_text"),
    "glm46v": glm("glm46v", "Glm46V", "glm4v_vision", "glm4v_text"),
    "glm_ocr": glm("glm_ocr", "Glm46V", "glm_ocr_vision", "glm_ocr_text"),
    "qwen3_5": qwen(  # attention in one layer of three, a linear recurrence in the others
        "qwen3_5", "Qwen3VLProcessor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        },
        decoder(
            "qwen3_5_text", rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            layer_types=["linear_attention", "full_attention", "linear_attention"], linear_key_head_dim=16,
            linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        ), "Qwen3VLVideoProcessor",
    ),
    "qwen3_vl_moe": qwen(
        "qwen3_vl_moe", "Qwen3VLProcessor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        decoder(
            "qwen3_vl_moe_text", rope_parameters={**MROPE, "mrope_interleaved": True}, num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=64,
        ), "Qwen3VLVideoProcessor",
    ),
    "exaone4_5": qwen(  # windows of 4 × 4 patches in all layers but the second; grouped queries in the encoder
        "exaone4_5", "Exaone4_5_Processor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "num_key_value_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 32, "fullatt_block_indexes": [1],
        },
        decoder(
            "exaone4", sliding_window=64, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ), "Qwen2VLVideoProcessor",
    ),
    "lfm3_vl": qwen(  # short convolutions in the encoder's first layer
        "lfm3_vl", "Lfm3VlProcessor",
        {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "layer_types": ["conv", "full_attention", "full_attention"],
        },
        decoder("lfm3", layer_types=["conv", "full_attention", "full_attention"]), "Qwen3VLVideoProcessor",
    ),
    "video_llama_3": Pair(  # patches of a merged cell stand together
        config={
            "model_type": "video_llama_3", "image_token_id": ID["<|image_pad|>"],
            "video_token_id": ID["<|video_pad|>"],
            "vision_config": {
                "model_type": "video_llama_3_vision", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8,
            },
            "text_config": decoder("qwen2"),
        },
        processor=Made("VideoLlama3Processor"),
        image=Made("VideoLlama3ImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        parts={"video_processor": Made("VideoLlama3VideoProcessor", {
            "patch_size": 8, "merge_size": 2, "size": PIXELS,
        })},
        place="<|image_pad|>", token="<|image_pad|>",
        names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    ),
    "paddleocr_vl": Pair(
        config={
            "model_type": "paddleocr_vl", **QWEN_IDS,
            "vision_config": clip("paddleocr_vl_vision", spatial_merge_size=2),
            "text_config": decoder("paddleocr_vl_text", rope_parameters=MROPE),
        },
        processor=Made("PaddleOCRVLProcessor"),
        image=Made("PaddleOCRVLImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        place="<|vision_start|><|image_pad|><|vision_end|>", token="<|image_pad|>",
        names={"image_token": "<|image_pad|>"},
    ),
    "lighton_ocr": Pair(  # no breaks in the text: only the image token
        config={
            "model_type": "lighton_ocr", "image_token_id": ID["[IMG]"], "spatial_merge_size": 2,
            "vision_config": clip("pixtral", image_size=128, head_dim=16), "text_config": decoder("qwen3"),
        },
        processor=Made("LightOnOcrProcessor", {"patch_size": 8, "spatial_merge_size": 2}),
        image=Made("PixtralImageProcessor", {"size": {"longest_edge": 128}, "patch_size": 16}),
        place="[IMG]", token="[IMG]",
        names={"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    ),
    "idefics2": Pair(  # a perceiver's 16 latents for all patches
        config={
            "model_type": "idefics2", "image_token_id": ID["<image>"],
            "vision_config": clip("idefics2_vision", image_size=112),
            "perceiver_config": {
                "model_type": "idefics2_perceiver", "hidden_size": 64, "resampler_n_latents": 16, "resampler_depth": 2,
                "resampler_n_heads": 4, "resampler_head_dim": 16, "num_key_value_heads": 2,
            },
            "text_config": decoder("mistral", sliding_window=None),
        },
        processor=Made("Idefics2Processor", {"image_seq_len": 16}),
        image=Made("Idefics2ImageProcessor", {
            "size": {"shortest_edge": 56, "longest_edge": 112}, "do_image_splitting": False,
        }),
        names={"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}, first="<s>",
    ),
    "gemma4": Pair(  # cells of 3 × 3 patches are averaged; as many as fit the picture's shape
        config={
            "model_type": "gemma4", "image_token_id": ID["<image_soft_token>"], "boi_token_id": ID["<start_of_image>"],
            "eoi_token_id": ID["<end_of_image>"], "video_token_id": ID["<|video|>"], "audio_token_id": ID["<audio>"],
            "audio_config": None,
            "vision_config": {
                "model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 8,
                "pooling_kernel_size": 3, "position_embedding_size": 64,
            },
            "text_config": decoder(
                "gemma4_text", global_head_dim=16, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=16,
                sliding_window=64, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            ),
        },
        processor=Made("Gemma4Processor", {"image_seq_length": 70}),
        image=Made("Gemma4ImageProcessor", {"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 3}),
        parts={
            "video_processor": Made("Gemma4VideoProcessor", {"patch_size": 8, "pooling_kernel_size": 3}),
            "feature_extractor": Made("Gemma4AudioFeatureExtractor"),
        },
        place="<image_soft_token>", token="<image_soft_token>",
        names={
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
            "audio_token": "<audio>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
        },
    ),
    "qwen3_5_moe": qwen(
        "qwen3_5_moe", "Qwen3VLProcessor",
        {
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128, "num_heads": 4,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        },
        decoder(
            "qwen3_5_moe_text", rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            layer_types=["linear_attention", "full_attention", "linear_attention"], linear_key_head_dim=16,
            linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64,
        ), "Qwen3VLVideoProcessor",
    ),
    "hyperclovax_vision_v2": qwen(
        "hyperclovax_vision_v2", "HyperCLOVAXVisionV2Processor",
        {
            "model_type": "qwen2_5_vl_vision", "depth": 3, "hidden_size": 64, "out_hidden_size": 64,
            "intermediate_size": 128, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 32, "fullatt_block_indexes": [1],
        },
        decoder("hyperclovax"), "Qwen2VLVideoProcessor",
    ),
    "kimi_k25": Pair(  # latent attention: keys of 16 + 8, values of 16
        config={
            "model_type": "kimi_k25", **QWEN_IDS, "projection_hidden_size": 64,
            "vision_config": {
                "model_type": "kimi_k25_vision", "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8,
                "num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128,
            },
            "text_config": decoder(
                "deepseek_v3", num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8,
                qk_nope_head_dim=16, v_head_dim=16, head_dim=8, n_routed_experts=4, n_group=1, topk_group=1,
                num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, first_k_dense_replace=1,
            ),
        },
        processor=Made("Kimi_K25Processor"),
        image=Made("Kimi_K25ImageProcessor", {
            "patch_size": 8, "merge_size": 2, "max_patches": 240, "size": {"max_height": 512, "max_width": 512},
        }),
        parts={"video_processor": Made("Kimi_K25VideoProcessor", {"patch_size": 8, "merge_size": 2})},
        place="<|vision_start|><|image_pad|><|vision_end|>", token="<|image_pad|>",
        names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    ),
    "ernie4_5_vl_moe": Pair(  # experts of their own for images and for text
        config={
            "model_type": "ernie4_5_vl_moe", "image_token_id": ID["<|image_pad|>"],
            "video_token_id": ID["<|video_pad|>"], "image_start_token_id": ID["<|image_start|>"],
            "image_end_token_id": ID["<|image_end|>"], "video_start_token_id": ID["<|begin_of_video|>"],
            "video_end_token_id": ID["<|end_of_video|>"],
            "vision_config": {
                "model_type": "ernie4_5_vl_moe_vision", "depth": 3, "hidden_size": 64, "num_heads": 4,
                "patch_size": 8, "spatial_merge_size": 2, "temporal_merge_size": 2, "intermediate_size": 128,
            },
            "text_config": decoder(
                "ernie4_5_vl_moe_text", moe_intermediate_size=[64, 32], moe_k=2, moe_num_experts=4,
                moe_num_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"],
                rope_parameters={**MROPE, "mrope_section": [3, 3, 2]},
            ),
        },
        processor=Made("Ernie4_5_VLMoeProcessor"),
        image=Made("Ernie4_5_VLMoeImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        parts={"video_processor": Made("Ernie4_5_VLMoeVideoProcessor", {"patch_size": 8, "merge_size": 2, "draw_on_frames": False})},
        place="<|image_start|><|image_pad|><|image_end|>", token="<|image_pad|>",
        names={
            "image_token": "<|image_pad|>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
            "video_token": "<|video_pad|>", "video_start_token": "<|begin_of_video|>",
            "video_end_token": "<|end_of_video|>",
        },
    ),
    "hunyuan_vl": Pair(  # a newline's feature after each row, two more around all
        config={
            "model_type": "hunyuan_vl", "image_token_id": ID["<|image_pad|>"], "im_start_id": ID["<|image_start|>"],
            "im_end_id": ID["<|image_end|>"], "im_newline_id": ID["<|IMG_LINE_BREAK|>"],
            "vision_config": {
                "model_type": "hunyuan_vl_vision", "hidden_size": 64, "intermediate_size": 128,
                "num_attention_heads": 4, "num_hidden_layers": 3, "out_hidden_size": 64, "patch_size": 8,
                "max_image_size": 256, "min_image_size": 64, "text_hidden_size": 64, "img_max_token_num": 64,
                "max_vit_seq_len": 1024,
            },
            "text_config": decoder("hunyuan_vl_text", rope_parameters={**MROPE, "mrope_section": [2, 2, 2, 2]}),
        },
        processor=Made("HunYuanVLProcessor"),
        image=Made("HunYuanVLImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        place="<|image_start|><|image_pad|><|image_end|>", token="<|image_pad|>",
        names={
            "image_token": "<|image_pad|>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        },
    ),
    "muse_glimmer": Pair(
        config={
            "model_type": "muse_glimmer", "image_token_id": ID["<|patch|>"], "video_token_id": ID["<|video|>"],
            "out_hidden_size": 256, "projector_hidden_size": 64,
            "vision_config": {
                "model_type": "muse_glimmer_vision", "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8,
                "num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128,
                "max_position_embeddings": 64,
            },
            "text_config": decoder("muse_glimmer_text", sliding_window=64),
        },
        processor=Made("MuseGlimmerProcessor"),
        image=Made("MuseGlimmerImageProcessor", {"patch_size": 8, "merge_size": 2, "max_image_tokens": 64}),
        parts={"video_processor": Made("MuseGlimmerVideoProcessor", {"patch_size": 8, "merge_size": 2})},
        place="<|patch|>", token="<|patch|>", names={"image_token": "<|patch|>"},
    ),
    "fuyu": Pair(  # no encoder: patches of 30 pixels go straight in, a newline after each row
        config={
            "model_type": "fuyu", "patch_size": 30, "image_token_id": ID["|SPEAKER|"],
            "text_config": decoder("persimmon", qk_layernorm=True, num_key_value_heads=4),
        },
        processor=Made("FuyuProcessor"),
        image=Made("FuyuImageProcessor", {"size": {"height": 150, "width": 240}}),
        token="|SPEAKER|", first="▁", template=None, prompt="{question}\n",
    ),
}  # fmt: skip
