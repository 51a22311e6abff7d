"""One small word-level vocabulary for every family: plain words, and the special tokens that their processors write.

A word is a token, and so is each digit, mark and line break; spaces only separate. What is unknown is ``<unk>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CODES", "ID", "MARKS", "SPECIAL", "VOCABULARY", "WORDS", "tokenizer"]

MARKS = (*"0123456789", *".,:;?!-'\"()[]/<>_*▁", "\n")

PLAIN = """
    a an and are as at be below block above beside between black blue bottom box bright brown by can circle color
    corner cube dark describe detail do does edge empty for from full green grey has have here how i image in is it
    large left line lines long many me middle near no noise not object objects of on one only or orange out over pattern
    picture pink plain purple rectangle red right round see shape shapes short show shown side size small square tell than
    that the there these thing things this three to top triangle two under user assistant system what where which
    white wide with yellow yes you your frame frames video second seconds question answer original some crops help better
    text caption locate paragraph category name region regions
"""
WORDS = tuple(PLAIN.split())
"""Enough to ask "what color is the block ?", and to answer."""

TILES = (
    *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),  # Idefics 3 insists on 6 × 6
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 4) for c in range(1, 4)),
    *(f"TILE_{i}" for i in range(1, 10)),
)

CODES = 32
"""Pictures as words: how many there are."""

SPECIAL = (
    "<pad>", "<s>", "</s>", "<unk>", "<mask>",
    # Where an image goes, and around it.
    "<image>", "<video>", "<audio>", "<image_soft_token>", "<start_of_image>", "<end_of_image>", "<img>", "</img>",
    "<IMG_CONTEXT>", "<|image|>", "<|video|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|img_thumbnail|>",
    "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "[IMG]", "[IMG_BREAK]",
    "[IMG_END]", "<IMG_START>", "<IMG_END>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|python_tag|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<imgpad>", "<|im_start|>", "<|im_end|>", "<start_of_audio>", "<end_of_audio>",
    "<im_patch>", "<im_col>", "<im_low>", "<im_start>", "<im_end>", "<low_res_im_start>", "<frame_start>",
    "<frame_end>", "<patch_start>", "<patch_end>", "<patch_newline>", "<slice>", "</slice>", "<image_id>",
    "</image_id>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>",
    "]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[", "|SPEAKER|", "|NEWLINE|",
    "<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>", "<|extra_200|>",
    *(f"<|visual token {code:06}|>" for code in range(CODES)),  # Emu 3's, and Chameleon's, in digits of A to J
    *("IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in f"{code:02}") + "Z" for code in range(CODES)),
    *TILES,
)  # fmt: skip

VOCABULARY = (*SPECIAL, *MARKS, *WORDS)
ID: Mapping[str, int] = {token: index for index, token in enumerate(VOCABULARY)}
"""Number of each token."""


def tokenizer(names: Mapping[str, str] | None = None, *, first: str = "") -> Any:
    """A fast tokenizer of :data:`VOCABULARY`.

    Args:
        names: What a family's processor expects its tokenizer to call some tokens: ``{"image_token": "<image>"}``.
        first: What it writes before every text: ``<s>``, where special tokens are wanted, as Llama's does; ``▁``
            always, as SentencePiece's do.

    Raises:
        ValueError: If ``first`` is anything else.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(dict(ID), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"[A-Za-z]+"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^A-Za-z]"), "isolated"),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?=[A-Za-z])"), " ")])
    if first not in ("", "<s>", "▁"):
        raise ValueError(
            f"a tokenizer that writes {first!r} before every text: known are '', '<s>' and '▁'"
        )
    if first == "▁":
        # Special tokens are normalised, too, and must stay as they are: only what is longer begins with a mark.
        longer = Regex(rf"\A(?=[\s\S]{{{max(map(len, SPECIAL)) + 1}}})")
        backend.normalizer = normalizers.Replace(longer, "▁")
    if first == "<s>":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ID["<s>"])]
        )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=first == "▁") for token in SPECIAL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        mask_token="<mask>", extra_special_tokens=dict(names or {}),
    )  # fmt: skip
