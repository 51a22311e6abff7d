"""Families whose features take no place in the text: they stand before it, are attended across to, or become words."""

from __future__ import annotations

from zoo.pair import VOCAB, Made, Pair, clip, decoder
from zoo.tokens import CODES, ID

__all__ = ["PAIRS"]

SQUARE = {"height": 56, "width": 56}

PAIRS = {
    "git": Pair(  # the picture's tokens stand before the text's, and have no place in it
        config={
            "model_type": "git", "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 256,
            "pad_token_id": ID["<pad>"], "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"],
            "vision_config": clip("git_vision_model"),
        },
        processor=Made("GitProcessor"),
        image=Made("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
        token=None, first="<s>", template=None, prompt="{question}",
    ),
    "blip": Pair(
        config={
            "model_type": "blip", "projection_dim": 64, "image_text_hidden_size": 64,
            "vision_config": clip("blip_vision_model"),
            "text_config": {
                "model_type": "blip_text_model", "vocab_size": VOCAB, "hidden_size": 64, "encoder_hidden_size": 64,
                "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                "max_position_embeddings": 256, "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"],
                "sep_token_id": ID["</s>"], "pad_token_id": ID["<pad>"],
            },
        },
        processor=Made("BlipProcessor"),
        image=Made("BlipImageProcessor", {"size": SQUARE}),
        token=None, first="<s>", template=None, prompt="{question}",
    ),
    "idefics": Pair(  # gated cross-attention before every second layer, to a resampler's latents
        config={
            "model_type": "idefics", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 4, "num_attention_heads": 4, "cross_layer_interval": 2, "use_resampler": True,
            "alpha_initializer": "ones", "pad_token_id": ID["<pad>"], "bos_token_id": ID["<s>"],
            "eos_token_id": ID["</s>"],
            "vision_config": {
                "model_type": "idefics_vision", "embed_dim": 64, "image_size": 56, "intermediate_size": 128,
                "patch_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4,
            },
            "perceiver_config": {
                "model_type": "idefics_perciever", "use_resampler": True, "resampler_n_latents": 8,
                "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 16,
            },
        },
        processor=Made("IdeficsProcessor", {"image_size": 56}),
        image=Made("IdeficsImageProcessor", {"image_size": 56}),
        token=None, names={"image_token": "<image>"}, template=None, prompt="question : {question} answer :",
    ),
    "kosmos-2": Pair(
        config={
            "model_type": "kosmos-2", "latent_query_num": 16,
            "vision_config": clip("kosmos_2_vision_model"),
            "text_config": {
                "model_type": "kosmos_2_text_model", "vocab_size": VOCAB, "embed_dim": 64, "layers": 3,
                "ffn_dim": 128, "attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": ID["<pad>"],
                "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"],
            },
        },
        processor=Made("Kosmos2Processor", {"num_patch_index_tokens": 4}),
        image=Made("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": SQUARE}),
        defaults={"num_image_tokens": 16}, token=None, template=None, prompt="<grounding> {question}",
    ),
    "pix2struct": Pair(  # as many patches as fit, in the picture's own shape, each with its row and column
        config={
            "model_type": "pix2struct",
            "vision_config": {
                "model_type": "pix2struct_vision_model", "hidden_size": 64, "patch_embed_hidden_size": 192,
                "d_ff": 128, "d_kv": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "seq_len": 64,
            },
            "text_config": {
                "model_type": "pix2struct_text_model", "vocab_size": VOCAB, "hidden_size": 64, "d_kv": 16,
                "d_ff": 128, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": ID["<pad>"],
                "pad_token_id": ID["<pad>"], "eos_token_id": ID["</s>"],
            },
        },
        processor=Made("Pix2StructProcessor"),
        image=Made("Pix2StructImageProcessor", {"patch_size": {"height": 8, "width": 8}, "max_patches": 64}),
        defaults={"images_kwargs": {"max_patches": 64}}, token=None, template=None, prompt="{question}",
    ),
    "kosmos-2.5": Pair(
        config={
            "model_type": "kosmos-2.5", "latent_query_num": 16,
            "vision_config": {
                "model_type": "kosmos_2_5_vision_model", "hidden_size": 64, "patch_embed_hidden_size": 192,
                "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
                "max_num_patches": 64,
            },
            "text_config": {
                "model_type": "kosmos_2_5_text_model", "vocab_size": VOCAB, "embed_dim": 64, "layers": 3,
                "ffn_dim": 128, "attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": ID["<pad>"],
                "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"],
            },
        },
        processor=Made("Kosmos2_5Processor", {"num_image_tokens": 16}),
        image=Made("Kosmos2_5ImageProcessor", {"patch_size": {"height": 8, "width": 8}, "max_patches": 64}),
        defaults={"images_kwargs": {"max_patches": 64, "return_tensors": "pt"}},
        token=None, template=None, prompt="{question}",
        names={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"},
    ),
    "chameleon": Pair(  # a picture's tokens are words of the vocabulary: 64 pixels are 8 × 8 codes
        config={
            **decoder("chameleon", num_key_value_heads=4), "vocabulary_map": dict(ID),
            "vq_config": {
                "model_type": "chameleon_vqgan", "embed_dim": 32, "num_embeddings": CODES, "latent_channels": 32,
                "resolution": 64, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1,
            },
        },
        processor=Made("ChameleonProcessor", {"image_seq_length": 64}),
        image=Made("ChameleonImageProcessor", {
            "size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64},
        }),
        names={
            "image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
            "sep_token": "</s>",
        },
        template=None,
    ),
    "emu3": Pair(  # codes in the picture's own shape, one more after each row
        config={
            "model_type": "emu3", "vocabulary_map": dict(ID),
            "vq_config": {
                "model_type": "emu3_vqgan", "codebook_size": CODES, "embed_dim": 4, "latent_channels": 4,
                "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "hidden_size": 32,
                "attn_resolutions": [3],
            },
            "text_config": decoder("emu3_text_model"),
        },
        processor=Made("Emu3Processor"),
        image=Made("Emu3ImageProcessor", {"min_pixels": 64 * 64, "max_pixels": 96 * 96}),
        names={
            "image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
            "image_wrapper_token": "<|image_start|>", "eof_token": "<|image_end|>",
        },
    ),
}  # fmt: skip
