"""Families that cut a picture into tiles, most with a thumbnail of the whole, some with separators between."""

from __future__ import annotations

from zoo.pair import Made, Pair, clip, decoder, siglip
from zoo.tokens import ID

__all__ = ["PAIRS"]

TILE = {"height": 64, "width": 64}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
PINPOINTS64 = [[64, 128], [128, 64], [128, 128]]
IMAGE = {"image_token": "<image>"}
VIDEO = {"size": TILE, "do_sample_frames": False}

PAIRS = {
    "llava_next": Pair(
        config={
            "model_type": "llava_next", "image_token_id": ID["<image>"], "image_grid_pinpoints": PINPOINTS,
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "vision_config": clip(projection_dim=64), "text_config": decoder("mistral"),
        },
        processor=Made("LlavaNextProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        }),
        image=Made("LlavaNextImageProcessor", {
            "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "image_grid_pinpoints": PINPOINTS,
        }),
        names=IMAGE, first="<s>",
    ),
    "llava_onevision": Pair(
        config={
            "model_type": "llava_onevision", "image_token_id": ID["<image>"], "video_token_id": ID["<video>"],
            "image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9", "vision_config": siglip(), "text_config": decoder("qwen2"),
        },
        processor=Made("LlavaOnevisionProcessor", {"num_image_tokens": 49, "vision_feature_select_strategy": "full"}),
        image=Made("LlavaOnevisionImageProcessor", {
            "size": {"height": 56, "width": 56}, "image_grid_pinpoints": PINPOINTS,
        }),
        parts={"video_processor": Made("LlavaOnevisionVideoProcessor", {"size": {"height": 56, "width": 56}})},
        names={"image_token": "<image>", "video_token": "<video>"},
    ),
    "internvl": Pair(  # 8 × 8 patches a tile, shuffled to 4 × 4
        config={
            "model_type": "internvl", "image_token_id": ID["<IMG_CONTEXT>"], "downsample_ratio": 0.5,
            "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
            "vision_config": clip(
                "internvl_vision", image_size=[64, 64], patch_size=[8, 8], layer_scale_init_value=0.5,
            ),
            "text_config": decoder("qwen2"),
        },
        processor=Made("InternVLProcessor", {"image_seq_length": 16}),
        image=Made("GotOcr2ImageProcessor", {"size": TILE, "crop_to_patches": True, "max_patches": 6}),
        parts={"video_processor": Made("InternVLVideoProcessor", {"size": TILE})},
        place="<IMG_CONTEXT>", token="<IMG_CONTEXT>",
        names={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "idefics3": Pair(  # 8 × 8 patches a tile, shuffled to 4 × 4
        config={
            "model_type": "idefics3", "image_token_id": ID["<image>"], "scale_factor": 2,
            "vision_config": clip("idefics3_vision", image_size=64), "text_config": decoder(),
        },
        processor=Made("Idefics3Processor", {"image_seq_len": 16}),
        image=Made("Idefics3ImageProcessor", {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}),
        first="<s>",
    ),
    "smolvlm": Pair(
        config={
            "model_type": "smolvlm", "image_token_id": ID["<image>"], "scale_factor": 2,
            "vision_config": clip("smolvlm_vision", image_size=64), "text_config": decoder(),
        },
        processor=Made("SmolVLMProcessor", {"image_seq_len": 16}),
        image=Made("SmolVLMImageProcessor", {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}),
        parts={"video_processor": Made("SmolVLMVideoProcessor", {
            "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64},
        })},
        names={
            "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
            "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        },
    ),
    "mllama": Pair(  # nothing in the sequence: the language model attends across to the tiles
        config={
            "model_type": "mllama", "image_token_index": ID["<|image|>"],
            "vision_config": {
                "model_type": "mllama_vision_model", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 4, "image_size": 56,
                "patch_size": 8, "vision_output_dim": 192, "intermediate_layers_indices": [0, 2],
            },
            "text_config": decoder(
                "mllama_text_model", num_hidden_layers=4, cross_attention_layers=[1, 3], rope_parameters=None,
            ),
        },
        processor=Made("MllamaProcessor"),
        image=Made("MllamaImageProcessor", {"size": {"height": 56, "width": 56}, "max_image_tiles": 4}),
        place="<|image|>", token=None, names={"image_token": "<|image|>"},
    ),
    "aya_vision": Pair(  # 8 × 8 patches a tile, shuffled to 4 × 4
        config={
            "model_type": "aya_vision", "image_token_index": ID["<|IMG_PATCH|>"], "downsample_factor": 2,
            "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "vision_config": siglip(image_size=64),
            "text_config": decoder("cohere2", logit_scale=1.0, sliding_window=64),
        },
        processor=Made("AyaVisionProcessor", {"patch_size": 8, "img_size": 64, "downsample_factor": 2}),
        image=Made("GotOcr2ImageProcessor", {"size": TILE, "crop_to_patches": True, "max_patches": 6}),
        token="<|IMG_PATCH|>",
    ),
    "llama4": Pair(  # 8 × 8 patches a tile and a class token, shuffled to 4 × 4; experts in every second layer
        config={
            "model_type": "llama4", "image_token_index": ID["<|patch|>"],
            "boi_token_index": ID["<|image_start|>"], "eoi_token_index": ID["<|image_end|>"],
            "vision_config": clip(
                "llama4_vision_model", image_size=64, intermediate_size=256, vision_output_dim=64,
                projector_input_dim=64,
                projector_output_dim=64, pixel_shuffle_ratio=0.5,
            ),
            "text_config": decoder(
                "llama4_text", intermediate_size_mlp=128, num_local_experts=2, interleave_moe_layer_step=2,
                no_rope_layer_interval=3, attention_chunk_size=64,
            ),
        },
        processor=Made("Llama4Processor", {"patch_size": 8, "pixel_shuffle_ratio": 0.5}),
        image=Made("Llama4ImageProcessor", {"size": TILE, "max_patches": 6}),
        place="<|image|>", token="<|patch|>",
    ),
    "lfm2_vl": Pair(  # tiles of 8 × 8 patches and a thumbnail of its own shape, both merged 2 × 2
        config={
            "model_type": "lfm2_vl", "image_token_id": ID["<image>"], "downsample_factor": 2,
            "projector_hidden_size": 64,
            "vision_config": {
                "model_type": "siglip2_vision_model", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8, "num_patches": 64,
                "vision_use_head": False,
            },
            "text_config": decoder(
                "lfm2", block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention", "full_attention"],
            ),
        },
        processor=Made("Lfm2VlProcessor"),
        image=Made("Lfm2VlImageProcessor", {
            "encoder_patch_size": 8, "tile_size": 64, "min_tiles": 2, "max_tiles": 6, "min_image_tokens": 4,
            "max_image_tokens": 16,
        }),
        names={
            "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
    ),
    "ovis2": Pair(  # a picture's tokens are a soft mixture of a visual vocabulary; strides of 2 × 2
        config={
            "model_type": "ovis2", "image_token_id": ID["<IMG_ATOM>"],
            "visual_indicator_token_ids": [
                ID[token] for token in ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
            ],
            "vocab_size": 300, "hidden_size": 64,
            "vision_config": clip(
                "ovis2_vision", image_size=64, hidden_stride=2, vocab_size=128, num_visual_indicator_tokens=5,
            ),
            "text_config": decoder("qwen2"),
        },
        processor=Made("Ovis2Processor", {"image_seq_length": 16}),
        image=Made("Ovis2ImageProcessor", {"size": TILE, "crop_to_patches": True, "max_patches": 6}),
        token="<IMG_ATOM>",
    ),
    "llava_next_video": Pair(
        config={
            "model_type": "llava_next_video", "image_token_index": ID["<image>"], "video_token_index": ID["<video>"],
            "image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "vision_config": clip(projection_dim=64), "text_config": decoder(),
        },
        processor=Made("LlavaNextVideoProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        }),
        image=Made("LlavaNextImageProcessor", {
            "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "image_grid_pinpoints": PINPOINTS,
        }),
        parts={"video_processor": Made("LlavaNextVideoVideoProcessor", {
            "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56},
        })},
        names={"image_token": "<image>", "video_token": "<video>"}, first="<s>",
    ),
    "granite4_vision": Pair(  # Q-Formers over windows of 4 × 4 patches, two for each; features enter inner layers
        config={
            "model_type": "granite4_vision", "image_token_index": ID["<image>"], "image_grid_pinpoints": PINPOINTS64,
            "vision_feature_select_strategy": "default", "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0], [-3, 1]], "spatial_vision_layer": -1, "spatial_target_layers": [2],
            "vision_config": clip(image_size=64, projection_dim=64),
            "text_config": decoder("granite4_vision_text"),
            "qformer_config": {
                "model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
                "intermediate_size": 128, "cross_attention_frequency": 1, "encoder_hidden_size": 64,
                "use_qformer_text_input": False,
            },
        },
        processor=Made("Granite4VisionProcessor", {
            "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
            "downsample_rate": "1/2",
        }),
        image=Made("LlavaNextImageProcessor", {
            "size": {"shortest_edge": 64}, "crop_size": TILE, "image_grid_pinpoints": PINPOINTS64,
        }),
        names=IMAGE,
    ),
    "cohere2_vision": Pair(  # a line break after each tile
        config={
            "model_type": "cohere2_vision", "image_token_id": ID["<|IMG_PATCH|>"], "downsample_factor": 2,
            "alignment_intermediate_size": 128, "vision_config": siglip(image_size=64),
            "text_config": decoder("cohere2", logit_scale=1.0, sliding_window=64),
        },
        processor=Made("Cohere2VisionProcessor"),
        image=Made("Cohere2VisionImageProcessor", {"size": TILE, "max_patches": 6, "patch_size": 4}),
        place="<|IMG_PATCH|>", token="<|IMG_PATCH|>",
        names={
            "image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
    ),
    "qianfan_ocr": Pair(  # 8 × 8 patches a tile, shuffled to 4 × 4
        config={
            "model_type": "qianfan_ocr", "image_token_id": ID["<IMG_CONTEXT>"], "downsample_ratio": 0.5,
            "image_seq_length": 16,
            "vision_config": clip(
                "qianfan_ocr_vision", image_size=[64, 64], patch_size=[8, 8], layer_scale_init_value=0.5,
                drop_path_rate=0.0,
            ),
            "text_config": decoder("qwen3"),
        },
        processor=Made("QianfanOCRProcessor", {"image_seq_length": 16}),
        image=Made("GotOcr2ImageProcessor", {"size": TILE, "crop_to_patches": True, "max_patches": 6}),
        token="<IMG_CONTEXT>",
        names={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
    ),
    "aria": Pair(  # a query for every few patches: 490 pixels are 10 × 10 patches, read by 16 queries
        config={
            "model_type": "aria", "image_token_index": ID["<image>"], "projector_patch_to_query_dict": {100: 16},
            "vision_config": clip("idefics3_vision", image_size=490, patch_size=49),
            "text_config": decoder("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        },
        processor=Made("AriaProcessor", {"size_conversion": {490: 16}}),
        image=Made("AriaImageProcessor", {
            "max_image_size": 490, "min_image_size": 336, "split_image": True,
            "split_resolutions": [[490, 490], [490, 980], [980, 490], [980, 980]],
        }),
        defaults={"images_kwargs": {"max_image_size": 490, "split_image": True}}, names=IMAGE,
    ),
    "granite_docling": Pair(  # 8 × 8 patches a tile, shuffled to 4 × 4
        config={
            "model_type": "granite_docling", "image_token_id": ID["<image>"], "pad_token_id": ID["<pad>"],
            "vision_config": clip(
                "granite_docling_vision", image_size=64, out_hidden_size=64, scale_factor=2,
                deepstack_visual_indexes=[1, 2],
            ),
            "text_config": decoder(
                "granite_docling_text", attention_multiplier=0.25, residual_multiplier=1.0, embedding_multiplier=1.0,
            ),
        },
        processor=Made("GraniteDoclingProcessor", {"image_seq_len": 16}),
        image=Made("GraniteDoclingImageProcessor", {"size": TILE, "max_patches": 6}),
        names=IMAGE,
    ),
    "minicpmv4_6": Pair(  # patches merged twice 2 × 2: once inside the encoder, once behind it
        config={
            "model_type": "minicpmv4_6", "image_token_id": ID["<image>"], "video_token_id": ID["<video>"],
            "insert_layer_id": 1, "image_size": 128,
            "vision_config": clip("minicpmv4_6_vision", image_size=128, insert_layer_id=1),
            "text_config": decoder(
                "qwen3_5_text", layer_types=["linear_attention", "full_attention", "linear_attention"],
                linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
            ),
        },
        processor=Made("MiniCPMV4_6Processor"),
        image=Made("MiniCPMV4_6ImageProcessor", {"patch_size": 8, "scale_resolution": 128, "max_slice_nums": 4}),
        parts={"video_processor": Made("MiniCPMV4_6VideoProcessor", {"patch_size": 8, "scale_resolution": 128})},
        names={
            "image_token": "<image>", "video_token": "<video>", "image_start_token": "<img>",
            "image_end_token": "</img>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
        },
    ),
    "molmo2": Pair(  # overlapping crops; a learned query pools 2 × 2 patches; a token after each row
        config={
            "model_type": "molmo2", "image_start_token_id": ID["<im_start>"],
            "low_res_image_start_token_id": ID["<low_res_im_start>"], "image_end_token_id": ID["<im_end>"],
            "image_patch_id": ID["<im_patch>"], "frame_start_token_id": ID["<frame_start>"],
            "frame_end_token_id": ID["<frame_end>"],
            "vision_config": {
                "model_type": "molmo2_vision", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "image_size": [64, 64],
                "patch_size": 8, "num_position_embeddings": 64,
            },
            "adapter_config": {
                "model_type": "molmo2_adapter", "vision_feature_layer": [-1, -3], "hidden_size": 64,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 128,
                "text_hidden_size": 64,
            },
            "text_config": decoder("molmo2_text", additional_vocab_size=8),
        },
        processor=Made("Molmo2Processor"),
        image=Made("Molmo2ImageProcessor", {
            "size": TILE, "max_crops": 4, "overlap_margins": [1, 1], "patch_size": 8, "pooling_size": [2, 2],
        }),
        parts={"video_processor": Made("Molmo2VideoProcessor", {"size": TILE, "patch_size": 8})},
        place="<|image|>", token="<im_patch>", names={"image_token": "<|image|>", "video_token": "<|video|>"},
    ),
    "perception_lm": Pair(  # 8 × 8 patches a tile, averaged to 4 × 4; a class token left out
        config={
            "model_type": "perception_lm", "image_token_id": ID["<image>"], "video_token_id": ID["<video>"],
            "vision_use_cls_token": True, "projector_pooling_ratio": 2,
            "vision_config": {
                "model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "do_pooling": True,
                "num_classes": 64, "num_features": 64, "global_pool": "map",
                "model_args": {
                    "embed_dim": 64, "img_size": [64, 64], "patch_size": 8, "depth": 3, "num_heads": 4,
                    "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1,
                    "ref_feat_shape": [8, 8],
                },
            },
            "text_config": decoder(),
        },
        processor=Made("PerceptionLMProcessor", {"patch_size": 8, "pooling_ratio": 2}),
        image=Made("PerceptionLMImageProcessor", {"tile_size": 64, "max_num_tiles": 6}),
        parts={"video_processor": Made("PerceptionLMVideoProcessor", {"size": TILE})},
        names={"image_token": "<image>", "video_token": "<video>"},
    ),
    "unlimited_ocr": Pair(  # two encoders in a row; a newline's feature after each row of the whole, not of a tile
        config={
            "model_type": "unlimited_ocr", "image_token_id": ID["<image>"],
            "vision_config": {
                "model_type": "unlimited_ocr_vision",
                "sam_config": {
                    "model_type": "unlimited_ocr_sam_vision_model", "hidden_size": 64, "output_channels": 16,
                    "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 128, "patch_size": 8,
                    "window_size": 6, "global_attn_indexes": [1], "mlp_dim": 128, "downsample_channels": [32, 64],
                },
                "encoder_config": {
                    "model_type": "unlimited_ocr_vision_encoder", "hidden_size": 64, "intermediate_size": 128,
                    "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 128, "patch_size": 32,
                },
            },
            "text_config": decoder(
                "unlimited_ocr_text", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
                moe_intermediate_size=64, num_key_value_heads=4, sliding_window=64,
            ),
        },
        processor=Made("UnlimitedOcrProcessor", {"patch_size": 8, "downsample_ratio": 4}),
        image=Made("UnlimitedOcrImageProcessor", {
            "size": {"height": 128, "width": 128}, "tile_size": 64, "max_patches": 6,
        }),
        names=IMAGE,
    ),
    "step3p7": Pair(  # a large thumbnail, and windows of it at twice the size
        config={
            "model_type": "step3p7", "image_token_id": ID["<im_patch>"],
            "vision_config": {
                "model_type": "step3p5_vision", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                "num_attention_heads": 4, "image_size": 128, "patch_size": 8, "mlp_ratio": 2.0,
                "layer_scale_init_value": 0.5, "max_position_embeddings": 256,
            },
            "text_config": decoder(
                "step3p5", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, share_expert_dim=64,
                sliding_window=64, mlp_layer_types=["dense", "sparse", "sparse"],
                layer_types=["full_attention", "sliding_attention", "full_attention"],
            ),
        },
        processor=Made("Step3p7Processor"),
        image=Made("Step3p7ImageProcessor", {
            "size": {"height": 128, "width": 128}, "patch_size": 96, "max_image_size": 512, "vision_patch_size": 8,
        }),
        place="<im_patch>", token="<im_patch>",
    ),
}  # fmt: skip
