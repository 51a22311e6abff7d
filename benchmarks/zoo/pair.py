"""What a pair is, as data, and the pieces that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.tokens import ID

__all__ = ["CHAT", "VOCAB", "Made", "Pair", "clip", "decoder", "siglip"]

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}PLACE{% else %}"
    "{{ c['text'] }}{% endif %} {% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
"""A chat template; ``PLACE`` is what a family writes for a picture."""

VOCAB = "the tokenizer's length"
"""Stands for it in a configuration: some processors add tokens of their own."""


@dataclass(frozen=True, slots=True)
class Made:
    """A part of a processor: a class of transformers, and its settings."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A tiny model and the processor that agrees with it.

    Attributes:
        config: The model's configuration, ``model_type`` included; nested ones as mappings.
        processor: Class and settings.
        image: Image processor.
        place: What the text says where a picture goes.
        token: The token at which a picture's features enter the sequence; None if they do not.
        names: What the tokenizer calls some tokens.
        first: What the tokenizer writes before every text.
        parts: Further parts of the processor, by name.
        template: Chat template, with ``PLACE``; None if the family has none.
        prompt: The whole text where there is no template, with ``{place}`` and ``{question}``.
        start: The token with which an encoder–decoder's answer starts.
        soften: Factors on the spread of weights, by a part of their names, where random ones would mix all with all.
        defaults: The processor's attributes that hold what its calls default to, where they are no settings.
    """

    config: Mapping[str, Any]
    processor: Made
    image: Made
    place: str = "<image>"
    token: str | None = "<image>"
    names: Mapping[str, str] = field(default_factory=dict)
    first: str = ""
    parts: Mapping[str, Made] = field(default_factory=dict)
    template: str | None = CHAT
    prompt: str = "{place}{question}"
    start: str | None = None
    soften: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


def decoder(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A language model of three layers: width 64, four heads of 16, two key heads."""
    return {
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 2048, "pad_token_id": ID["<pad>"], "bos_token_id": ID["<s>"],
        "eos_token_id": ID["</s>"], **changes,
    }  # fmt: skip


def clip(model_type: str = "clip_vision_model", **changes: Any) -> dict[str, Any]:
    """A vision encoder of four layers on 7 × 7 patches of 8 pixels."""
    return {
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": 56, "patch_size": 8, **changes,
    }  # fmt: skip


def siglip(**changes: Any) -> dict[str, Any]:
    """The same without a class token and without a pooling head."""
    return clip("siglip_vision_model", vision_use_head=False, **changes)
