"""Tiny random LLaVA models with a real processor, built from configurations: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = [
    "<unk>",
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "user",
    ":",
    "assistant",
    "what",
    "is",
    "this",
    "where",
    "red",
    "blue",
    "circle",
    "a",
    "on",
    "the",
    "left",
]
TEMPLATE = (
    "{% for m in messages %}user :{% for c in m['content'] %}{% if c['type'] == 'image' %} <image>"
    "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %} assistant :"
)


def llava(seed: int = 0, attention: str = "sdpa", **changes: Any) -> LlavaForConditionalGeneration:
    """Grouped-query attention, feature layer −2, 4 × 4 patches."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=4, num_attention_heads=3,
        image_size=32, patch_size=8, projection_dim=24,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(WORDS), pad_token_id=1, bos_token_id=2, eos_token_id=3,
        initializer_range=0.3,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=4,
        **{"vision_feature_layer": -2, "vision_feature_select_strategy": "default", **changes},
    )  # fmt: skip
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).eval()
    # Default initialisation gives flat attention; sharper weights make wrong code show.
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.set_attn_implementation(attention)
    return model


def processor(crop: bool = True) -> LlavaProcessor:
    """Shortest edge to 32, then a centred 32 × 32 crop (or squeezed to it)."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    size = {"shortest_edge": 32} if crop else {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(
        size=size, crop_size={"height": 32, "width": 32}, do_center_crop=crop
    )
    return LlavaProcessor(
        images, fast, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, writing ``<s>`` before every text as Llama's does."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    return tokenizer


def picture(seed: int = 0, size: tuple[int, int] = (40, 56)) -> Image.Image:
    """Noise; ``size`` is Y, X."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
