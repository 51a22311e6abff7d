"""Families that are nearly another's: the same processor, or the same encoder, with a language model of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo import pairs_grid, pairs_tiles
from zoo.pair import Made, Pair, clip, decoder
from zoo.pairs_grid import MROPE, PIXELS, glm
from zoo.tokens import ID

__all__ = ["PAIRS"]

MINICPM = pairs_tiles.PAIRS["minicpmv4_6"]
QWEN3 = pairs_grid.PAIRS["qwen3_vl"]
INTERLEAVED = {**MROPE, "mrope_interleaved": True}
GLIMMER = pairs_grid.PAIRS["muse_glimmer"]


def kin(pair: Pair, **changes: Any) -> Pair:
    """The same pair with another configuration on top of its own."""
    return replace(pair, config={**pair.config, **changes})


PAIRS = {
    "cosmos3_omni": kin(
        QWEN3, model_type="cosmos3_omni",
        vision_config={"model_type": "qwen3_vl_vision", **QWEN3.config["vision_config"]},
    ),
    "glmga": replace(
        glm("glmga", "Glm46V", "glm4v_vision", "glm4v_text"),
        image=Made("GlmgaImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
    ),
    "glm4v_moe": kin(
        glm("glm4v_moe", "Glm4v", "glm4v_moe_vision", "glm4v_moe_text"),
        text_config=decoder(
            "glm4v_moe_text", rope_parameters={**MROPE, "partial_rotary_factor": 1.0}, n_routed_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=64, first_k_dense_replace=1,
        ),
    ),
    "minicpmv4_7": kin(
        replace(MINICPM, processor=Made("MiniCPMV4_7Processor")), model_type="minicpmv4_7",
        image_start_id=ID["<img>"], image_end_id=ID["</img>"],
        slice_start_id=ID["<slice>"], slice_end_id=ID["</slice>"], newline_id=ID["\n"],
        vision_config=clip("minicpmv4_7_vision", image_size=128, insert_layer_id=1),
    ),
    "cohere_compass": Pair(
        config={
            "model_type": "cohere_compass", "image_token_id": ID["<|IMAGE_PAD|>"],
            "video_token_id": ID["<|VIDEO_PAD|>"], "vision_start_token_id": ID["<|VISION_START|>"],
            "vision_end_token_id": ID["<|VISION_END|>"],
            "vision_config": {**QWEN3.config["vision_config"], "model_type": "cohere_compass_vision"},
            "text_config": decoder("cohere_compass_text", sliding_window=64, logit_scale=1.0, rope_parameters={
                "full_attention": INTERLEAVED, "sliding_attention": INTERLEAVED,
            }),
        },
        processor=Made("CohereCompassProcessor"),
        image=Made("CohereCompassImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        parts={"video_processor": Made("CohereCompassVideoProcessor", {"patch_size": 8, "merge_size": 2})},
        place="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", token="<|IMAGE_PAD|>",
    ),
    "minimax_m3_vl": Pair(
        config={
            "model_type": "minimax_m3_vl", "image_token_index": ID["]<]image[>["],
            "video_token_index": ID["]<]video[>["], "projector_hidden_size": 64,
            "vision_config": clip("minimax_m3_vl_vision", image_size=128),
            "text_config": decoder(
                "minimax_m3_vl_text", num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=128,
                shared_intermediate_size=64, rotary_dim=8, index_head_dim=16, index_block_size=16,
            ),
        },
        processor=Made("MiniMaxM3VLProcessor"),
        image=Made("MiniMaxM3VLImageProcessor", {"patch_size": 8, "merge_size": 2, "size": PIXELS}),
        parts={"video_processor": Made("MiniMaxM3VLVideoProcessor", {"patch_size": 8, "merge_size": 2})},
        place="]<]image[>[", token="]<]image[>[",
    ),
    "muse_spark": kin(
        replace(GLIMMER, processor=Made("MuseSparkProcessor"), parts={
            **GLIMMER.parts, "feature_extractor": Made("MuseSparkFeatureExtractor"),
        }),
        model_type="muse_spark", audio_token_id=ID["<audio>"],
        audio_config={"out_hidden_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        vision_config={**GLIMMER.config["vision_config"], "model_type": "muse_spark_vision"},
        text_config=decoder(
            "muse_spark_text", sliding_window=64, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
            moe_hidden_size=32,
        ),
    ),
}  # fmt: skip
