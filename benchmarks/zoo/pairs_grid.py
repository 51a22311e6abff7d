"""Families that see a picture in its own shape: as many patches as it needs, two by two merged."""

from __future__ import annotations

from typing import Any

from zoo.pair import Made, Pair, clip, decoder
from zoo.tokens import ID

__all__ = ["PAIRS"]

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
PIXELS = {"shortest_edge": 1024, "longest_edge": 16384}
"""Least and most pixels of a picture: 500 × 300 becomes 160 × 96."""

VISION = {"<|vision_start|>", "<|vision_end|>"}
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
        place="[IMG]", token="[IMG]", first=True,
    ),
}  # fmt: skip
