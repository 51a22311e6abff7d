"""Families whose picture takes no place in the text: it stands before it, or is attended across to."""

from __future__ import annotations

from zoo.pair import VOCAB, Made, Pair, clip
from zoo.tokens import ID

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
        token=None, first=True, template=None, prompt="{question}",
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
        token=None, first=True, template=None, prompt="{question}",
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
}  # fmt: skip
