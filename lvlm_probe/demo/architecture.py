"""The demo model before training: configuration, tokenizer, processor, weights drawn at random.

Everything is a stock class of transformers at a small size: a CLIP vision encoder of 144 patches, LLaVA's two-layer
projector and a Llama language model over a vocabulary of words.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lvlm_probe.demo.questions import NUMBERS
from lvlm_probe.demo.scenes import COLOURS, SHAPES, SIZE

PATCH = 8
"""Side of a patch, in pixels."""

GRID = SIZE // PATCH
"""Patches along each side of an image."""

IMAGE_TOKENS = GRID * GRID
"""Visual tokens of an image."""

WIDTH = 128
VISION_LAYERS = 3
LANGUAGE_LAYERS = 4
HEADS = 4

UNKNOWN, PAD, START, END, IMAGE = "<unk>", "<pad>", "<s>", "</s>", "<image>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- message['role'] | upper + ':' -}}
{%- if message['content'] is string -%}
{{- ' ' + message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- ' <image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- '\\n' + part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- '</s>' -}}{%- else -%}{{- ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
"""One question about one image: ``USER: <image>``, the question on a line of its own, ``ASSISTANT:``."""

_EASY_VQA_WORDS = [
    "black",
    "gray",
    "teal",
    "brown",
    "rectangle",
    "present",
    "contain",
    "does",
    "not",
    "no",
    "shape",
]
_QUESTION_WORDS = [
    "user",
    "assistant",
    ":",
    ",",
    ".",
    "?",
    "a",
    "an",
    "the",
    "is",
    "are",
    "there",
    "what",
    "which",
    "how",
    "many",
    "where",
    "in",
    "of",
    "from",
    "to",
    "image",
    "object",
    "objects",
    "colour",
    "color",
    "shape",
    "corner",
    "relative",
    "describe",
    "left",
    "right",
    "top",
    "bottom",
    "above",
    "below",
    "yes",
    "no",
]


def vocabulary() -> list[str]:
    """Every token, in the order of its number; the special ones first."""
    plurals = [f"{shape}s" for shape in SHAPES]
    words = [*_QUESTION_WORDS, *COLOURS, *SHAPES, *plurals, *NUMBERS, *_EASY_VQA_WORDS]
    return list(dict.fromkeys([UNKNOWN, PAD, START, END, IMAGE, *words]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, any case; words it does not know become ``<unk>``."""
    numbers = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, numbers[START])]
    )
    # Joins words by spaces, and punctuation to the word before it; no word starts with the prefix.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        extra_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=512,
    )


def build_processor() -> LlavaProcessor:
    """Processor for pictures of any size: short side scaled to 96 pixels, centre cropped."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_config() -> LlavaConfig:
    """The sizes."""
    words = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        # Half of a head's pairs turn so slowly that a word finds a patch wherever in the image it is.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=words.index(START),
        eos_token_id=words.index(END),
        pad_token_id=words.index(PAD),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model() -> LlavaForConditionalGeneration:
    """The untrained model, in float32; its weights come from torch's global generator."""
    words = vocabulary()
    model = LlavaForConditionalGeneration(build_config())
    model.generation_config = GenerationConfig(
        bos_token_id=words.index(START),
        eos_token_id=words.index(END),
        pad_token_id=words.index(PAD),
        do_sample=False,
        max_new_tokens=24,
    )
    return model
