"""Families that see one square picture."""

from __future__ import annotations

from zoo.pair import VOCAB, Made, Pair, clip, decoder, siglip
from zoo.tokens import ID

__all__ = ["PAIRS"]

SQUARE = {"height": 56, "width": 56}
IMAGE = {"image_token": "<image>"}
OPT = {
    "model_type": "opt", "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "ffn_dim": 128,
    "num_attention_heads": 4, "word_embed_proj_dim": 64, "max_position_embeddings": 512,
    "pad_token_id": ID["<pad>"], "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"],
}  # fmt: skip
QFORMER = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "encoder_hidden_size": 64, "cross_attention_frequency": 2, "pad_token_id": ID["<pad>"],
}  # fmt: skip
GEMMA = {
    "query_pre_attn_scalar": 16, "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip

PAIRS = {
    "llava": Pair(
        config={
            "model_type": "llava", "image_token_id": ID["<image>"], "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "vision_config": clip(projection_dim=64),
            "text_config": decoder(),
        },
        processor=Made("LlavaProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        }),
        image=Made("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
        names=IMAGE, first="<s>",
    ),
    "paligemma": Pair(
        config={
            "model_type": "paligemma", "image_token_index": ID["<image>"], "projection_dim": 64, "hidden_size": 64,
            "vision_config": siglip(projection_dim=64, num_image_tokens=49), "text_config": decoder("gemma"),
        },
        processor=Made("PaliGemmaProcessor"),
        image=Made("SiglipImageProcessor", {"size": SQUARE, "image_seq_length": 49}),
        names=IMAGE, template=None, prompt="{place}{question}",
    ),
    "gemma3": Pair(  # 8 × 8 patches, pooled to 4 × 4
        config={
            "model_type": "gemma3", "image_token_index": ID["<image_soft_token>"], "mm_tokens_per_image": 16,
            "boi_token_index": ID["<start_of_image>"], "eoi_token_index": ID["<end_of_image>"],
            "vision_config": siglip(image_size=64),
            "text_config": decoder("gemma3_text", **GEMMA),
        },
        processor=Made("Gemma3Processor", {"image_seq_length": 16}),
        image=Made("Gemma3ImageProcessor", {"size": {"height": 64, "width": 64}}),
        place="<start_of_image>", token="<image_soft_token>", first="<s>",
        names={
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        },
    ),
    "blip-2": Pair(
        config={
            "model_type": "blip-2", "num_query_tokens": 8, "image_token_index": ID["<image>"],
            "vision_config": clip("blip_2_vision_model"),
            "qformer_config": {"model_type": "blip_2_qformer", **QFORMER}, "text_config": OPT,
        },
        processor=Made("Blip2Processor", {"num_query_tokens": 8}),
        image=Made("BlipImageProcessor", {"size": SQUARE}),
        names={}, template=None, first="<s>", prompt="question : {question} answer :",
    ),
    "instructblip": Pair(
        config={
            "model_type": "instructblip", "num_query_tokens": 8, "image_token_index": ID["<image>"],
            "vision_config": clip("instructblip_vision_model"),
            "qformer_config": {"model_type": "instructblip_qformer", **QFORMER}, "text_config": decoder(),
        },
        processor=Made("InstructBlipProcessor", {"num_query_tokens": 8}),
        image=Made("BlipImageProcessor", {"size": SQUARE}),
        parts={"qformer_tokenizer": Made("tokenizer")}, template=None, first="<s>", prompt="{question}",
    ),
    "florence2": Pair(  # windows and channels attend by turns on 48, 24, 12, 6 a side; the mean stands first
        config={
            "model_type": "florence2", "image_token_id": ID["<image>"],
            "vision_config": {
                "model_type": "florence_vision", "depths": (1, 1, 2, 1), "embed_dim": (16, 32, 48, 64),
                "num_heads": (2, 4, 4, 4), "num_groups": (2, 4, 4, 4), "window_size": 4, "projection_dim": 64,
                "drop_path_rate": 0.0,
            },
            "text_config": {
                "model_type": "bart", "vocab_size": VOCAB, "d_model": 64, "encoder_layers": 3, "decoder_layers": 3,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
                "decoder_ffn_dim": 128, "max_position_embeddings": 512, "pad_token_id": ID["<pad>"],
                "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"], "decoder_start_token_id": ID["</s>"],
                "forced_eos_token_id": None, "is_encoder_decoder": True,
            },
        },
        processor=Made("Florence2Processor"),
        image=Made("CLIPImageProcessor", {
            "size": {"height": 192, "width": 192}, "do_center_crop": False, "image_seq_length": 37,
        }),
        names=IMAGE, template=None, prompt="{question}", start="</s>",
        soften={"channel_attn": 0.2, "conv1": 0.3, "conv2": 0.3, "window_attn.proj": 0.5},
    ),
    "vipllava": Pair(  # five layers' features side by side
        config={
            "model_type": "vipllava", "image_token_index": ID["<image>"], "vision_feature_layer": [-2, -3, 1],
            "vision_config": clip(projection_dim=64), "text_config": decoder(),
        },
        processor=Made("LlavaProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        }),
        image=Made("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
        names=IMAGE, first="<s>",
    ),
    "video_llava": Pair(  # keeps the class token
        config={
            "model_type": "video_llava", "image_token_index": ID["<image>"], "video_token_index": ID["<video>"],
            "vision_feature_select_strategy": "default", "image_seq_length": 49,
            "vision_config": clip(projection_dim=64), "text_config": decoder(),
        },
        processor=Made("VideoLlavaProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        }),
        image=Made("VideoLlavaImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
        parts={"video_processor": Made("VideoLlavaVideoProcessor", {
            "size": {"shortest_edge": 56}, "crop_size": SQUARE,
        })},
        names={"image_token": "<image>", "video_token": "<video>"}, first="<s>",
    ),
    "got_ocr2": Pair(  # windows with relative positions, then two convolutions that halve the grid: 16 -> 4
        config={
            "model_type": "got_ocr2", "image_token_index": ID["<imgpad>"], "image_seq_length": 16,
            "vision_config": {
                "model_type": "got_ocr2_vision", "hidden_size": 64, "output_channels": 16, "num_hidden_layers": 3,
                "num_attention_heads": 4, "image_size": 128, "patch_size": 8, "window_size": 6,
                "global_attn_indexes": [1], "mlp_dim": 128,
            },
            "text_config": decoder("qwen2"),
        },
        processor=Made("GotOcr2Processor"),
        image=Made("GotOcr2ImageProcessor", {"size": {"height": 128, "width": 128}}),
        defaults={"num_image_tokens": 16}, place="<img><imgpad></img>", token="<imgpad>",
    ),
    "janus": Pair(  # the longer edge to 64, the rest padded
        config={
            "model_type": "janus", "image_token_id": ID["<image>"],
            "vision_config": {
                "model_type": "janus_vision_model", "hidden_size": 64, "num_hidden_layers": 3,
                "num_attention_heads": 4, "image_size": 64, "patch_size": 8, "mlp_ratio": 2.0, "projection_dim": 64,
                "num_image_tokens": 64,
            },
            "vq_config": {
                "model_type": "janus_vqgan", "num_embeddings": 32, "base_channels": 32, "latent_channels": 32,
                "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 8, "projection_dim": 64,
                "image_token_embed_dim": 64,
            },
            "text_config": decoder(),
        },
        processor=Made("JanusProcessor", {"num_image_tokens": 64}),
        image=Made("JanusImageProcessor", {"size": {"height": 64, "width": 64}, "min_size": 8}),
        names={"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "deepseek_vl": Pair(
        config={
            "model_type": "deepseek_vl", "image_token_id": ID["<image>"], "vision_config": siglip(image_size=64),
            "text_config": decoder(),
        },
        processor=Made("DeepseekVLProcessor", {"num_image_tokens": 64}),
        image=Made("DeepseekVLImageProcessor", {"size": {"height": 64, "width": 64}, "min_size": 8}),
        names=IMAGE,
    ),
    "deepseek_vl_hybrid": Pair(  # a second encoder sees the picture in four times the resolution
        config={
            "model_type": "deepseek_vl_hybrid", "image_token_id": ID["<image>"],
            "vision_config": siglip(image_size=64),
            "high_res_vision_config": {
                "model_type": "sam_vision_model", "hidden_size": 64, "output_channels": 16, "num_hidden_layers": 3,
                "num_attention_heads": 4, "image_size": 256, "patch_size": 16, "window_size": 6,
                "global_attn_indexes": [1], "mlp_dim": 128, "num_pos_feats": 8,
            },
            "text_config": decoder(),
        },
        processor=Made("DeepseekVLHybridProcessor", {"num_image_tokens": 64}),
        image=Made("DeepseekVLHybridImageProcessor", {
            "size": {"height": 64, "width": 64}, "high_res_size": {"height": 256, "width": 256}, "min_size": 8,
        }),
        names=IMAGE,
    ),
    "t5gemma2": Pair(  # encoder and decoder; 8 × 8 patches, pooled to 4 × 4
        config={
            "model_type": "t5gemma2", "image_token_index": ID["<image_soft_token>"],
            "eoi_token_index": ID["<end_of_image>"],
            "encoder": {
                "model_type": "t5gemma2_encoder", "mm_tokens_per_image": 16,
                "image_token_index": ID["<image_soft_token>"], "boi_token_index": ID["<start_of_image>"],
                "eoi_token_index": ID["<end_of_image>"], "vision_config": siglip(image_size=64),
                "text_config": decoder("t5gemma2_text", **GEMMA),
            },
            "decoder": decoder("t5gemma2_decoder", **GEMMA),
        },
        processor=Made("Gemma3Processor", {"image_seq_length": 16}),
        image=Made("Gemma3ImageProcessor", {"size": {"height": 64, "width": 64}}),
        place="<start_of_image>", token="<image_soft_token>", first="<s>", start="<s>",
        names={
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        },
    ),
    "pp_chart2table": Pair(
        config={
            "model_type": "pp_chart2table", "image_token_index": ID["<imgpad>"], "image_seq_length": 16,
            "vision_config": {
                "model_type": "pp_chart2table_vision", "hidden_size": 64, "output_channels": 16,
                "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 128, "patch_size": 8,
                "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 128,
            },
            "text_config": decoder("qwen2"),
        },
        processor=Made("PPChart2TableProcessor"),
        image=Made("PPChart2TableImageProcessor", {"size": {"height": 128, "width": 128}}),
        place="<img>" + 16 * "<imgpad>" + "</img>", token="<imgpad>",  # the template counts, not the processor
    ),
    "fast_vlm": Pair(  # convolutions that halve the grid five times, attention in the last stage only
        config={
            "model_type": "fast_vlm", "image_token_index": ID["<image>"], "image_seq_length": 16,
            "vision_config": {
                "model_type": "timm_wrapper", "architecture": "fastvit_mci0", "do_pooling": True,
                "global_pool": "avg", "hidden_size": 256,
                "model_args": {"layers": [1, 1, 1, 1], "embed_dims": [16, 32, 64, 128]},
            },
            "text_config": decoder("qwen2"),
        },
        processor=Made("LlavaProcessor", {"patch_size": 32, "vision_feature_select_strategy": "full"}),
        image=Made("CLIPImageProcessor", {
            "size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128},
        }),
        names=IMAGE,
    ),
}  # fmt: skip
